"""The training step, and the state that it needs to go on: model parallel tables, DDP for the rest.

The same code runs as one process on a CPU and under torchrun: tables are sharded row-wise over the ranks and
updated in the backward pass by row-wise Adagrad; all other weights are replicated and updated by Adam. The
state is gathered to rank 0, so that a run continues on any number of ranks.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingEnv
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from model.config.environment import is_launched
from model.config.run import Config
from model.data.steps import Step
from model.embeddings.numbers import NumberScaler
from model.rankers.heads import Heads
from model.rankers.protocol import Ranker, build_ranker
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Dataset

logger = logging.getLogger(__name__)

_AVERAGE_STEPS = 10  # steps between two updates of the averaged weights
_AVERAGE_DECAY = 0.98  # of one update: a window of some 500 steps, shorter early on
_SMALL_TABLE = 1 << 18  # elements up to which an embedding table is averaged, too
_CONSTANTS = "inputs.scaler."  # fitted once, not trained


class NonFiniteLossError(CommandError):
    """The loss or gradient is NaN or infinite; the message names the step."""


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """The process group of torchrun's environment, or one of this process alone; within one, that one."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if is_launched():
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


class Trainer:
    """A ranker in training; needs a process group.

    Args:
        dataset: Declares features and tables.
        config: Model and training.
        device: Where to train.
    """

    def __init__(self, dataset: Dataset, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        ranker = build_ranker(dataset, config.model, config.train.seed).to(device)
        self.scaler: NumberScaler = ranker.inputs.scaler
        self.heads: Heads = ranker.heads
        tables = ranker.inputs.embeddings.tables
        in_tables = {id(parameter) for parameter in tables.parameters()}
        dense = {n: p for n, p in ranker.named_parameters() if id(p) not in in_tables}
        self.model = _distribute(ranker, list(tables.parameters()), config.train.sparse_lr, device)
        self.dense_names = sorted(dense)
        self.dense = [dense[name] for name in self.dense_names]
        decayed = {id(m.weight) for m in ranker.modules() if isinstance(m, nn.Linear)}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.dense if id(p) in decayed]},
            {"params": [p for p in self.dense if id(p) not in decayed], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.train.dense_lr,
            weight_decay=config.train.weight_decay,
        )
        self.num_steps = 0
        self._averaged = {name: part.clone() for name, part in self._averaged_parts()}
        self._pending: list[tuple[str, Tensor, Tensor]] = []

    def step(self, step: Step) -> None:
        """Takes one optimizer step; its loss is read by `losses`."""
        train = self.config.train
        if not step.batch.layouts:
            step = step.ready(train.frozen_share)
        batch = step.batch.to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = train.dense_lr * min(1.0, (self.num_steps + 1) / (train.warmup_steps + 1))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
            logits = self.model(batch)
        total = nn.functional.binary_cross_entropy_with_logits(
            logits, batch.labels, weight=batch.weights, reduction="sum"
        )
        loss = total / step.weight
        self.optimizer.zero_grad()
        # Both DDP and the row-wise exchange divide gradients by the number of ranks.
        (loss * dist.get_world_size()).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.dense, train.clip_norm)
        self.optimizer.step()
        self.num_steps += 1
        if self.num_steps % _AVERAGE_STEPS == 0 or self.num_steps < 5 * _AVERAGE_STEPS:
            self._average()
        self._pending.append((step.name, loss.detach(), norm.detach()))

    @property
    def num_pending(self) -> int:
        """Steps whose losses have not been read."""
        return len(self._pending)

    def losses(self) -> list[tuple[str, float]]:
        """(step, loss over all ranks) of the steps since the last call.

        Raises:
            NonFiniteLossError: A loss or gradient norm is NaN or infinite.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return []
        values = torch.stack([torch.stack([loss, norm]) for _, loss, norm in pending]).double()
        dist.all_reduce(values)
        for (name, _, _), (loss, norm) in zip(pending, values.tolist(), strict=True):
            if not (abs(loss) < float("inf") and abs(norm) < float("inf")):
                raise NonFiniteLossError(
                    f"step {name} (day/pass/step): loss {loss}, gradient norm {norm}; training stops and "
                    "makes no run; look at the rows of that step, or lower the learning rate"
                )
        return [(name, loss) for (name, _, _), (loss, _) in zip(pending, values.tolist(), strict=True)]

    def published(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """The model to publish of a `state`: its weights, averaged over the last steps.

        A constant learning rate leaves the noise of the last batches in the weights; their moving average has
        not got it. Large tables stay as they are: a row changes rarely, and ever less under Adagrad.
        """
        return {**state["weights"], **state["averaged"]}

    def _averaged_names(self) -> list[str]:
        own = self.model.state_dict()
        return [
            name
            for name, tensor in own.items()
            if not name.startswith(_CONSTANTS)
            and (not hasattr(tensor, "local_shards") or tensor.size().numel() <= _SMALL_TABLE)
        ]

    def _averaged_parts(self) -> list[tuple[str, Tensor]]:
        """What is averaged over steps: weights outside the tables, and this rank's part of small tables."""
        own = self.model.state_dict()
        parts = []
        for name in self._averaged_names():
            is_sharded = hasattr(own[name], "local_shards")
            tensors = [shard.tensor for shard in own[name].local_shards()] if is_sharded else [own[name]]
            parts += [(name, tensor.detach()) for tensor in tensors]
        return parts

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(_AVERAGE_DECAY, self.num_steps / (self.num_steps + 5 * _AVERAGE_STEPS))
        for name, part in self._averaged_parts():
            self._averaged[name].lerp_(part, 1 - decay)

    @torch.no_grad()
    def _swap_averaged(self) -> None:
        """Exchanges the weights with their averages; done twice, nothing has changed."""
        for name, part in self._averaged_parts():
            latest = part.clone()
            part.copy_(self._averaged[name])
            self._averaged[name].copy_(latest)

    def state(self) -> dict[str, Any] | None:
        """All that training needs to go on, on the CPU with whole tables; every rank must call it.

        Returns:
            On rank 0 `weights`, `averaged` (of those that are averaged), optimizer states, step count; None
            elsewhere.
        """
        own = self.model.state_dict()
        weights = _gathered(own)
        self._swap_averaged()
        averaged = _gathered({name: own[name] for name in self._averaged_names()})
        self._swap_averaged()
        sparse: dict[str, Tensor] = {}
        for name, state in self.model.fused_optimizer.state_dict()["state"].items():
            sparse |= {f"{name}/{key}": value for key, value in _gathered(state).items()}
        if dist.get_rank():
            return None
        return {
            "weights": weights,
            "averaged": averaged,
            "sparse": sparse,
            "dense": copy.deepcopy(self.optimizer.state_dict()),
            "num_steps": self.num_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave, on any number of ranks.

        Raises:
            ValueError: The state is of another model.
        """
        own = self.model.state_dict()
        if {name: tuple(t.shape) for name, t in own.items()} != {
            name: tuple(t.shape) for name, t in state["weights"].items()
        }:
            raise ValueError(
                "the state has other weights than this model; it is of another config or dataset"
            )
        _scatter(state["averaged"], {name: own[name] for name in state["averaged"]})
        for name, part in self._averaged_parts():
            self._averaged[name].copy_(part)
        _scatter(state["weights"], own)
        for name, values in self.model.fused_optimizer.state_dict()["state"].items():
            _scatter({key: state["sparse"][f"{name}/{key}"] for key in values}, values)
        self.optimizer.load_state_dict(state["dense"])
        self.num_steps = state["num_steps"]


def _distribute(
    ranker: Ranker, tables: list[nn.Parameter], sparse_lr: float, device: torch.device
) -> DistributedModelParallel:
    apply_optimizer_in_backward(RowWiseAdagrad, tables, {"lr": sparse_lr, "eps": 1e-8})
    sharder = EmbeddingCollectionSharder()
    constraint = ParameterConstraints(sharding_types=["row_wise"], compute_kernels=["fused"])
    names = list(ranker.inputs.embeddings.sizes)
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=dist.get_world_size(), compute_device=device.type),
        constraints=dict.fromkeys(names, constraint),
    )
    plan = planner.collective_plan(ranker, [sharder], dist.group.WORLD)
    return DistributedModelParallel(
        ranker,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=[sharder],
    )


def _gathered(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Whole CPU copies of tensors and sharded tensors (empty on ranks other than 0 for the latter)."""
    whole = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and not hasattr(tensor, "local_shards"):
            whole[name] = tensor.detach().cpu().clone()
            continue
        out = torch.empty(tensor.size(), dtype=tensor.dtype) if dist.get_rank() == 0 else None
        if tensor.local_shards() and tensor.local_shards()[0].tensor.is_cuda and out is not None:
            out = out.cuda()
        tensor.gather(dst=0, out=out)
        if out is not None:
            whole[name] = out.cpu()
    return whole


@torch.no_grad()
def _scatter(whole: dict[str, Tensor], own: dict[str, Any]) -> None:
    """Copies whole tensors into tensors and into the local part of sharded tensors."""
    for name, tensor in own.items():
        if not hasattr(tensor, "local_shards"):
            tensor.copy_(whole[name])
            continue
        for shard in tensor.local_shards():
            start, size = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
            shard.tensor.copy_(whole[name][start : start + size].view_as(shard.tensor))
