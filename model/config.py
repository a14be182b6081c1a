"""What a run is: its model and its training as frozen values, and the presets by name.

A preset is a function that returns a `Config`; a variant calls another and replaces fields. The sizes of
`small` to `xl` are the paper's (arXiv 2505.18654, table 3; head dim 256); `tiny` is for a CPU and
`user_tower` is the DLRM that MTGR has to beat.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ARCHITECTURES = ("mtgr", "user_tower")
PRECISIONS = ("float32", "bfloat16")


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not value > 0:
            raise ValueError(f"{type(owner).__name__}.{name} is {value!r}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Args:
        architecture: `mtgr` or `user_tower`.
        num_blocks: HSTU blocks (of `user_tower`: unused, 1).
        d_model: Width of a token.
        num_heads: Attention heads; each has width `d_model / num_heads`.
        divisor: The n of `SiLU(QK^T) / n`: a constant, so that scores do not depend on the batch.
        max_static: How many of the latest static behaviours the model reads.
        token_hidden: Hidden width of the MLPs that make behaviour and candidate tokens.
        head_hidden: Hidden width of the CTR and CTCVR heads.
        low_cardinality_width: Least embedding width of tables with at most 4096 rows; scaling up widens
            these (0: as the dataset declares).
        norm_eps: Added to the variance in group layer norm.
        num_experts: Experts of the user tower's mixture.
        num_queries: Learned queries of the user tower's sequence encoder.
        ops_backend: Backend of `hstu_ops`: `auto`, `reference`, `cpu`, `triton` or `cutlass`.

    Raises:
        ValueError: A value is out of range.
    """

    architecture: str = "mtgr"
    num_blocks: int
    d_model: int
    num_heads: int
    divisor: float = 128.0
    max_static: int = 1000
    token_hidden: int
    head_hidden: int
    low_cardinality_width: int = 0
    norm_eps: float = 1e-6
    num_experts: int = 16
    num_queries: int = 4
    ops_backend: str = "auto"

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture is {self.architecture!r}; use one of {', '.join(ARCHITECTURES)}")
        _positive(
            self, "num_blocks", "d_model", "num_heads", "divisor", "token_hidden", "head_hidden", "max_static"
        )
        _positive(self, "norm_eps", "num_experts", "num_queries")
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.num_heads

    def flops(self, num_tokens: int) -> int:
        """Forward FLOPs of the blocks for a row of `num_tokens`, without mask sparsity (FLOP = 2 MAC).

        `blocks * (10 N d^2 + 4 N^2 d)`: five d x d projections (U, V, Q, K, out) and two products with the
        sequence.
        """
        n, d = num_tokens, self.d_model
        return self.num_blocks * (10 * n * d * d + 4 * n * n * d)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training.

    Args:
        batch_tokens: Tokens of a step, all ranks together; batches are cut by cumulative tokens.
        passes: Passes over a day before the next day is read.
        dense_lr: Learning rate of Adam for all but the embedding tables.
        weight_decay: Decoupled weight decay of Adam.
        sparse_lr: Learning rate of row-wise Adagrad for the embedding tables.
        warmup_steps: Steps of linear warm-up at the start of a lineage.
        frozen_share: Share of windows trained as frozen scoring sees them (no real-time state).
        clip_norm: Greatest norm of the dense gradient.
        checkpoint_steps: Steps between two checkpoints of a run in progress.
        precision: `float32`, or `bfloat16` autocast.
        seed: Seed of the initial weights and of the order within a day.

    Raises:
        ValueError: A value is out of range.
    """

    batch_tokens: int
    passes: int = 1
    dense_lr: float
    weight_decay: float = 0.0
    sparse_lr: float = 0.02
    warmup_steps: int = 50
    frozen_share: float = 0.5
    clip_norm: float = 1.0
    checkpoint_steps: int = 200
    precision: str = "float32"
    seed: int = 1

    def __post_init__(self) -> None:
        _positive(self, "batch_tokens", "passes", "dense_lr", "sparse_lr", "clip_norm", "checkpoint_steps")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; use one of {', '.join(PRECISIONS)}")
        if not 0 <= self.frozen_share <= 1:
            raise ValueError(f"frozen_share is {self.frozen_share}; it must lie in [0, 1]")
        if self.weight_decay < 0 or self.warmup_steps < 0 or self.seed < 0:
            raise ValueError("weight_decay, warmup_steps and seed must not be negative")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run's model and training under the preset's name."""

    preset: str
    model: ModelConfig
    train: TrainConfig

    def to_json(self, **more: Any) -> str:
        """This config, and `more` beside it, as JSON with sorted keys."""
        return json.dumps({**dataclasses.asdict(self), **more}, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        """Reads what `to_json` wrote; other keys are ignored.

        Raises:
            ValueError: A field is missing, unknown or out of range.
        """
        try:
            return Config(
                preset=values["preset"],
                model=ModelConfig(**values["model"]),
                train=TrainConfig(**values["train"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a run's config: {error}; was it written by another version?") from error


def tiny() -> Config:
    """A model for a CPU: 2 blocks, d 64."""
    return Config(
        preset="tiny",
        model=ModelConfig(
            num_blocks=2, d_model=64, num_heads=2, max_static=50, token_hidden=128, head_hidden=64
        ),
        train=TrainConfig(
            batch_tokens=4_000,
            dense_lr=1e-3,
            weight_decay=0.01,
            passes=2,
            warmup_steps=10,
            frozen_share=0.3,
        ),
    )


def _paper(preset: str, num_blocks: int, d_model: int, low_cardinality_width: int, lr: float) -> Config:
    return Config(
        preset=preset,
        model=ModelConfig(
            num_blocks=num_blocks,
            d_model=d_model,
            num_heads=d_model // 256,
            divisor=512.0,
            token_hidden=2 * d_model,
            head_hidden=d_model,
            low_cardinality_width=low_cardinality_width,
        ),
        train=TrainConfig(batch_tokens=48_000, dense_lr=lr, warmup_steps=500, precision="bfloat16"),
    )


def small() -> Config:
    """The paper's small: 3 blocks, d 512, 2 heads; 5.47 GFLOPs at 500 tokens."""
    return _paper("small", 3, 512, 32, 3e-4)


def medium() -> Config:
    """The paper's medium: 5 blocks, d 768, 3 heads; 18.59 GFLOPs at 500 tokens."""
    return _paper("medium", 5, 768, 64, 3e-4)


def large() -> Config:
    """The paper's large: 15 blocks, d 768, 3 heads; 55.76 GFLOPs at 500 tokens."""
    return _paper("large", 15, 768, 64, 1e-4)


def xl() -> Config:
    """The paper's extra large (offline only there): 22 blocks, d 1024, 4 heads; 137.87 GFLOPs."""
    return _paper("xl", 22, 1024, 96, 1e-4)


def user_tower() -> Config:
    """UserTower DLRM, the article's best before MTGR: multi-query tower, 16 experts, target attention."""
    base = tiny()
    return Config(
        preset="user_tower",
        model=dataclasses.replace(base.model, architecture="user_tower", num_blocks=1),
        train=dataclasses.replace(base.train, dense_lr=8e-4),
    )


PRESETS: dict[str, Callable[[], Config]] = {
    preset.__name__: preset for preset in (tiny, small, medium, large, xl, user_tower)
}


def preset_named(name: str) -> Config:
    """The preset called `name`.

    Raises:
        ValueError: There is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
