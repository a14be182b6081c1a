"""The ranks of a training: their process group, and a ranker laid out over them.

Embedding tables are sharded row-wise and updated in the backward pass by row-wise Adagrad; the rest is
replicated under DDP, sharded by FSDP2, or left to the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchrec.distributed import DistributedModelParallel, dist_data
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingEnv
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from model.config.environment import is_launched
from model.rankers.protocol import Ranker


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


def _order_of_received(local_split: int, num_splits: int, *rest: Any, **named: Any) -> Tensor | None:
    """As TorchRec's, but none for one rank, which receives nothing: to copy one would wait for the device."""
    return None if num_splits == 1 else _get_recat(local_split, num_splits, *rest, **named)


_get_recat = dist_data._get_recat
dist_data._get_recat = _order_of_received


def distributed(
    ranker: Ranker, tables: list[nn.Parameter], sparse_lr: float, device: torch.device, *, ddp: bool
) -> DistributedModelParallel:
    """A ranker whose tables are sharded over the ranks; every rank must call it.

    Args:
        ranker: Whole, on `device`, the same on every rank.
        tables: Weights of its tables.
        sparse_lr: Learning rate of their row-wise Adagrad.
        device: Where to train.
        ddp: Whether DDP exchanges the gradients of the rest.
    """
    apply_optimizer_in_backward(RowWiseAdagrad, tables, {"lr": sparse_lr, "eps": 1e-8})
    sharder = EmbeddingCollectionSharder()
    # One rank has whole tables: nothing is cut by rows, whose sizes TorchRec would ask the device for.
    sharding = "row_wise" if dist.get_world_size() > 1 else "table_wise"
    constraint = ParameterConstraints(sharding_types=[sharding], compute_kernels=["fused"])
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
        init_data_parallel=ddp,
        # A static graph cannot leave the exchange of gradients to the last part of a step.
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=False),
    )


def shard_fully(ranker: Ranker, dense: Collection[str], device: torch.device) -> None:
    """Shards the weights outside the tables over the ranks: each block by itself, then all others.

    Between forward and backward the weights stay whole: a block's last bias is read by the block behind it.

    Args:
        ranker: One whose tables are sharded already.
        dense: Names of the weights.
        device: Where to train.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    tables = {weight for name, weight in ranker.named_parameters() if name not in dense}
    for block in getattr(ranker, "blocks", ()):
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    fully_shard(ranker, mesh=mesh, reshard_after_forward=False, ignored_params=tables)


@contextlib.contextmanager
def unsynced_shards(ranker: Any) -> Iterator[None]:
    """Within it gradients of a fully sharded ranker are added up, and not yet exchanged."""
    ranker.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        ranker.set_requires_gradient_sync(True)
