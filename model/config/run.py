"""What a run is: its model and its training as frozen values.

The presets by name are in `model/config/presets.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from model.rankers.known import ranker_config
from model.rankers.protocol import RankerConfig, require_positive
from spark_jobs.contract.features import Dataset

PRECISIONS = ("float32", "bfloat16")


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
        require_positive(
            self, "batch_tokens", "passes", "dense_lr", "sparse_lr", "clip_norm", "checkpoint_steps"
        )
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
    model: RankerConfig
    train: TrainConfig

    def sized(self, dataset: Dataset) -> Config:
        """This config with the size of every embedding table of a dataset written out, as a run keeps it."""
        model = dataclasses.replace(self.model, tables=self.model.table_sizes(dataset))
        return dataclasses.replace(self, model=model)

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
                model=ranker_config(values["model"]),
                train=TrainConfig(**values["train"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a run's config: {error}; was it written by another version?") from error
