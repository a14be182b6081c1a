"""A hash table as tensors: whole, in an order that no history shows in, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.embeddings import memory as m

if TYPE_CHECKING:
    from model.embeddings.hash_table import HashTable

BY_KEY = ("ids", "tables", "counts", "seen", "vectors", "optimizer_0", "optimizer_1")
WAITING = ("waiting_ids", "waiting_tables", "waiting_counts", "waiting_days")


def by_table_and_id(ids: Tensor, tables: Tensor) -> Tensor:
    """Places of keys in order."""
    by_id = ids.argsort(stable=True)
    return by_id[tables[by_id].argsort(stable=True)]


def joined(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The states of several ranks, or some columns of them, as one in the order of one process's."""
    whole = dict(states[0])
    for names in (BY_KEY, WAITING):
        parts = {name: torch.cat([state[name] for state in states]) for name in names if name in whole}
        if parts:
            order = by_table_and_id(parts[names[0]], parts[names[1]])
            whole |= {name: part[order] for name, part in parts.items()}
    return whole


def slices_of(tables: Tensor) -> tuple[list[int], list[int]]:
    """Ends of the slices of ascending tables, and the table of each."""
    kinds, counts = torch.unique_consecutive(tables, return_counts=True)
    return counts.cumsum(0).tolist(), kinds.tolist()


def state_of(table: HashTable) -> dict[str, Tensor]:
    """All that a table is.

    `ids`, `tables`, `counts`, `seen`, `vectors` and `optimizer_k` are of the keys with a row, by table and
    id; `waiting_*` of those that wait for admission; `steps` is a number, `days` the days of data that still
    count with the first step of each.
    """
    rows, ids, tables = table.keys()
    waiting = table.memory.waiting()
    order = by_table_and_id(waiting[0], waiting[1])
    read = table.memory.read
    state = {
        "ids": ids,
        "tables": tables,
        "counts": read(m.COUNTS, rows),
        "seen": read(m.SEEN, rows),
        "vectors": read(m.VECTORS, rows),
        **{f"optimizer_{k}": read(m.STATE + k, rows) for k in range(len(table.state_widths))},
        **{name: part[order] for name, part in zip(WAITING, waiting, strict=True)},
        "steps": torch.tensor(table.steps),
        "days": torch.tensor([table.days, table.first_ticks], dtype=torch.int64),
    }
    return {name: tensor.cpu().contiguous() for name, tensor in state.items()}


def load_into(table: HashTable, state: dict[str, Tensor]) -> None:
    """Makes an empty table what `state_of` gave.

    Raises:
        ValueError: The state is of another width or optimizer.
    """
    wanted = [("vectors", table.width), *((f"optimizer_{k}", w) for k, w in enumerate(table.state_widths))]
    for name, width in wanted:
        if name not in state or state[name].shape[1] != width:
            got = tuple(state[name].shape) if name in state else "none"
            raise ValueError(f"the state's {name} are {got}, this table's have width {width}")
    table.clear()
    table.steps = int(state["steps"])
    for waited in range(int(state["waiting_counts"].max()) if len(state["waiting_counts"]) else 0):
        _count_once_more(table, state, waited)
    table.days, table.first_ticks = state["days"].tolist()
    rows = table.admit(state["ids"], state["tables"])
    columns = [(m.COUNTS, "counts"), (m.SEEN, "seen"), (m.VECTORS, "vectors")]
    columns += [(m.STATE + k, f"optimizer_{k}") for k in range(len(table.state_widths))]
    for column, name in columns:
        table.memory.write(column, rows, state[name].to(table.device))


def _count_once_more(table: HashTable, state: dict[str, Tensor], waited: int) -> None:
    """Counts every waiting key that was seen more than `waited` times, on its day."""
    kinds = torch.stack([state["waiting_tables"], state["waiting_days"]], 1)
    for kind in torch.unique(kinds, dim=0):
        chosen = (kinds == kind).all(1) & (state["waiting_counts"] > waited)
        number, day = kind.tolist()
        table.days, table.first_ticks = [day], [0]
        ids = state["waiting_ids"][chosen].to(table.device)
        table.insert(ids, [len(ids)], [number])
