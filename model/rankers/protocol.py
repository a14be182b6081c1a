"""What a ranker is: a config that builds a module, and a module that turns a batch into logits.

A ranker is one file of this package: its config, a subclass of `RankerConfig`, and its module. It becomes
known by one line in `model/rankers/known.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from model.embeddings.sizes import TableSize, table_sizes
from model.embeddings.tables import ID_TABLES
from model.rankers.heads import Heads
from model.rankers.inputs import InputTokens
from spark_jobs.contract.features import Dataset, Owner

# Features of candidates that a ranker can do without: what an ablation leaves out.
_SPARED = (Owner.CROSS, Owner.ITEM_STATISTIC, Owner.REALTIME_STATISTIC)


class Ranker(nn.Module):
    """What training and scoring know of a ranker.

    `forward(batch, embeddings=None)` gives the logits of click and conversion (over all impressions), float32
    `[2, C]`; `embeddings` are those of the batch, where they were looked up before.

    Attributes:
        inputs: Makes tokens of a batch, by the embedding tables and constants that it holds.
        heads: Make logits of candidates.
        recompute: Whether blocks compute their activations again in the backward pass; set by training.
    """

    inputs: InputTokens
    heads: Heads
    recompute: bool = False


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """What every ranker's config says.

    Args:
        d_model: Width of a token.
        num_heads: Attention heads; each has width `d_model / num_heads`.
        max_static: How many of the latest static behaviours the model reads; 0: none.
        token_hidden: Hidden width of the MLPs that make behaviour and candidate tokens.
        token_layers: Hidden layers of these MLPs.
        head_hidden: Hidden width of the CTR and CTCVR heads.
        low_cardinality_width: Least embedding width of tables with at most 4096 rows; scaling up widens
            these (0: none is widened).
        tables: Sizes of embedding tables by name; the rest follow `model/embeddings/sizes.py`.
        id_tables: `dynamic`, hash tables that ids come into and leave, or `hashed`, a fixed number of rows
            that ids share by their hash.

    Attributes:
        architecture: The ranker's name in `config.json`; each subclass has its own.

    Raises:
        ValueError: A value is out of range.
    """

    takes_padded: ClassVar[bool] = False  # whether its rankers read no more of a batch than its fixed tensors

    architecture: str = field(init=False, default="")
    d_model: int
    num_heads: int
    max_static: int = 1000
    token_hidden: int
    head_hidden: int
    low_cardinality_width: int = 0
    tables: Mapping[str, TableSize] = field(default_factory=dict)
    id_tables: str = "hashed"
    without: tuple[str, ...] = ()
    shares_items: bool = False
    token_layers: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "without", tuple(self.without))
        require_positive(self, "d_model", "num_heads", "token_hidden", "token_layers", "head_hidden")
        if self.max_static < 0:
            raise ValueError(f"max_static is {self.max_static}; use 0 for no static behaviours, or more")
        if unknown := sorted(set(self.without) - set(_SPARED)):
            raise ValueError(f"without names {unknown[0]!r}; use {', '.join(_SPARED)}")
        if self.id_tables not in ID_TABLES:
            raise ValueError(f"id_tables is {self.id_tables!r}; use one of {', '.join(ID_TABLES)}")
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    def table_sizes(self, dataset: Dataset) -> dict[str, TableSize]:
        """Size of every embedding table of a dataset; see `sizes.table_sizes`."""
        return table_sizes(dataset, self.tables, self.low_cardinality_width)

    def inputs(self, dataset: Dataset, generator: torch.Generator) -> InputTokens:
        """What makes tokens of a dataset's batches; arguments as of `build`."""
        return InputTokens(
            dataset,
            d_model=self.d_model,
            token_hidden=(self.token_hidden,) * self.token_layers,
            tables=self.table_sizes(dataset),
            id_tables=self.id_tables,
            without=self.without,
            shares_items=self.shares_items,
            generator=generator,
        )

    def visible_flops(self, num_tokens: int, num_pairs: int) -> int:
        """Forward FLOPs of the blocks for tokens of which `num_pairs` see each other; 0: it has none."""
        return 0

    def build(self, dataset: Dataset, generator: torch.Generator) -> Ranker:
        """The ranker, on the CPU.

        Args:
            dataset: Declares features and tables.
            generator: Source of the embedding tables' initial values; other weights take torch's global one.
        """
        raise NotImplementedError


def require_positive(owner: object, *names: str) -> None:
    """Checks fields of a config.

    Raises:
        ValueError: One of them is not positive.
    """
    for name in names:
        value = getattr(owner, name)
        if not value > 0:
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be positive")


def build_ranker(dataset: Dataset, config: RankerConfig, seed: int) -> Ranker:
    """A ranker with the initial weights that the seed gives, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build(dataset, torch.Generator().manual_seed(seed))
