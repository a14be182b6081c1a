"""How long a dynamic table keeps a key, and how its rows learn."""

from __future__ import annotations

from dataclasses import dataclass

from spark_jobs.contract.command import CommandError

EVICTIONS = ("none", "lru", "lfu")
OPTIMIZERS = ("sgd", "adagrad", "adam")  # in the order of csrc/tables/layout.h


class TableFullError(CommandError):
    """A table has no row left for a new key; the message says how to give it one."""


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Which keys get a row, and which lose it.

    Args:
        admission: How often an id must be seen before it has a row of its own; until then it has the vector
            that it would begin with, and learns nothing.
        ttl_days: Days of data after which an id that was not seen loses its row; None: never.
        max_rows: Most rows of a `HashTable`: of all tables of one width together, and of all ranks together;
            None: what memory holds.
        eviction: Who goes when it is full: `lru` the longest not seen, `lfu` the least often seen, `none`
            nobody, which is an error.
        num_ranks: Ranks that the rows are spread over; each has an equal part of `max_rows`.

    Raises:
        ValueError: A value is out of range, or keys would wait for ever.
    """

    admission: int = 1
    ttl_days: int | None = None
    max_rows: int | None = None
    eviction: str = "none"
    num_ranks: int = 1

    def __post_init__(self) -> None:
        if self.admission < 1:
            raise ValueError(f"admission is {self.admission}; an id must be seen at least once")
        if self.ttl_days is not None and not 1 <= self.ttl_days < 8192:
            raise ValueError(f"ttl_days is {self.ttl_days}; use 1 to 8191, or None")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows is {self.max_rows}; a table has at least one row")
        if self.max_rows is not None and self.max_rows < self.num_ranks:
            raise ValueError(
                f"max_rows is {self.max_rows} for {self.num_ranks} ranks; use at least a row for each"
            )
        if self.eviction not in EVICTIONS:
            raise ValueError(f"eviction is {self.eviction!r}; use one of {', '.join(EVICTIONS)}")
        if self.eviction != "none" and self.max_rows is None:
            raise ValueError(f"eviction {self.eviction!r} without max_rows would never happen; set max_rows")
        if self.admission > 1 and self.ttl_days is None:
            raise ValueError("admission without ttl_days would keep ids that wait for ever; set ttl_days")

    @property
    def rows_of_rank(self) -> int | None:
        """Most rows that one rank holds, rounded down, so that all together are within `max_rows`."""
        return None if self.max_rows is None else self.max_rows // self.num_ranks


@dataclass(frozen=True, kw_only=True)
class RowOptimizer:
    """How rows learn: each step moves the rows of its ids alone.

    Args:
        name: `sgd`, `adagrad` (row-wise: one sum of squares a row) or `adam` (bias by the table's steps, as
            `torch.optim.SparseAdam`).
        lr: Learning rate.
        eps: Added to the root that divides.
        beta1: Decay of Adam's first moment.
        beta2: Decay of Adam's second moment.

    Raises:
        ValueError: The name is unknown.
    """

    name: str
    lr: float
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.name!r}; use one of {', '.join(OPTIMIZERS)}")

    def state_widths(self, width: int) -> tuple[int, ...]:
        """Float32 values of state of a row, by column."""
        return {"sgd": (), "adagrad": (1,), "adam": (width, width)}[self.name]
