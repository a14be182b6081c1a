"""What a run is: its model and its training as frozen values.

The presets by name are in `model/config/presets.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from model.embeddings.rules import Keeping
from model.rankers.known import ranker_config
from model.rankers.protocol import RankerConfig, require_positive
from spark_jobs.contract.features import Dataset

PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("constant", "cosine")
COSTS = ("tokens", "flops")
DENSE_OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training.

    Args:
        batch_tokens: Tokens of a step, all ranks together; batches are cut by cumulative cost.
        balance: What rows cost: `tokens`, or `flops`, which adds their part of attention in tokens' worth.
        accumulate: Parts in which a rank computes its batch, one after the other; one update of all weights.
        recompute: Whether activations of blocks are computed again in the backward pass instead of kept.
        fully_sharded: Whether each rank keeps a part of the dense weights and of their optimizer's state
            (FSDP2) instead of all of them (DDP); nothing is captured then.
        cuda_graphs: Whether, on a GPU and without `accumulate`, the dense part of a step is captured and
            replayed, where the ranker takes batches that are padded.
        passes: Passes over a day before the next day is read.
        dense_optimizer: `adamw`, or `muon`: Muon for the hidden matrices, AdamW for other dense weights.
        dense_lr: Learning rate of the dense optimizer.
        weight_decay: Decoupled weight decay of the dense optimizer.
        sparse_lr: Learning rate of row-wise Adagrad for the embedding tables.
        ttl_days: Days of data after which a dynamic table forgets an id that it has not seen; 0: never.
        admission: How often a dynamic table must see an id before it gets a row.
        max_rows: Most rows of the dynamic tables of one width, of all these tables and all ranks together;
            0: no limit.
        eviction: Who goes when they are full: `lru`, the id longest not seen; `lfu`, the one least often
            seen; `none`: nobody, and an id too many ends the training.
        warmup_steps: Steps of linear warm-up at the start of a lineage.
        warmup_tokens: Tokens of linear warm-up instead; 0: by steps.
        schedule: `constant`, or `cosine`: falling from the start of a lineage.
        decay_steps: Steps over which the cosine falls.
        final_share: Share of the learning rate that the cosine ends at.
        frozen_share: Share of windows trained as frozen scoring sees them (no real-time state).
        listwise: Weight, beside the cross entropy of each candidate, of that of a softmax over each row's
            candidates, which ranks them within the row; 0: none, as in the paper.
        clip_norm: Greatest norm of the dense gradient.
        checkpoint_steps: Steps between two checkpoints of a run in progress.
        checkpoints: How many of them are kept.
        precision: `float32`, or `bfloat16` autocast.
        seed: Seed of the initial weights and of the order within a day.

    Raises:
        ValueError: A value is out of range.
    """

    batch_tokens: int
    balance: str = "tokens"
    accumulate: int = 1
    recompute: bool = False
    fully_sharded: bool = False
    cuda_graphs: bool = True
    passes: int = 1
    dense_optimizer: str = "adamw"
    dense_lr: float
    weight_decay: float = 0.0
    sparse_lr: float = 0.02
    ttl_days: int = 0
    admission: int = 1
    max_rows: int = 0
    eviction: str = "none"
    warmup_steps: int = 50
    warmup_tokens: int = 0
    schedule: str = "constant"
    decay_steps: int = 0
    final_share: float = 0.1
    frozen_share: float = 0.5
    listwise: float = 0.0
    clip_norm: float = 1.0
    checkpoint_steps: int = 200
    checkpoints: int = 2
    precision: str = "float32"
    seed: int = 1

    def __post_init__(self) -> None:
        positive = ("batch_tokens", "accumulate", "passes", "dense_lr", "sparse_lr", "clip_norm")
        require_positive(self, *positive, "checkpoint_steps", "checkpoints")
        for name, known in (
            ("precision", PRECISIONS),
            ("schedule", SCHEDULES),
            ("balance", COSTS),
            ("dense_optimizer", DENSE_OPTIMIZERS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")
        for name in ("frozen_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        least = min(self.weight_decay, self.warmup_steps, self.warmup_tokens, self.listwise, self.seed)
        if least < 0:
            raise ValueError(
                "weight_decay, warmup_steps, warmup_tokens, listwise and seed must not be negative"
            )
        if self.schedule == "cosine" and self.decay_steps < 1:
            raise ValueError(f"schedule 'cosine' falls over decay_steps, which is {self.decay_steps}")
        if self.fully_sharded and self.dense_optimizer == "muon":
            raise ValueError("dense_optimizer 'muon' needs whole matrices: set fully_sharded to False")
        if self.ttl_days < 0 or self.max_rows < 0:
            name = "ttl_days" if self.ttl_days < 0 else "max_rows"
            raise ValueError(f"{name} is {getattr(self, name)}; use at least 1, or 0 for no limit")
        self.keeping()

    def keeping(self) -> Keeping:
        """Which ids of dynamic tables get and keep a row."""
        return Keeping(
            admission=self.admission,
            ttl_days=self.ttl_days or None,
            max_rows=self.max_rows or None,
            eviction=self.eviction,
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run's model and training under the preset's name.

    Raises:
        ValueError: The training limits rows of dynamic tables that the model does not have.
    """

    preset: str
    model: RankerConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        if self.train.max_rows and self.model.id_tables != "dynamic":
            raise ValueError(
                f"max_rows is {self.train.max_rows}, but id_tables {self.model.id_tables!r} have a fixed"
                " number of rows: set max_rows to 0, or id_tables to 'dynamic'"
            )

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
