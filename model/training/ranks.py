"""The ranks of a training: their process group, and a ranker laid out over them.

Large embedding tables are sharded row-wise and updated in the backward pass by row-wise Adagrad. Small ones
each of several ranks has whole: vectors of all tokens are more to send than gradients of all their rows.
The rest is replicated under DDP, sharded by FSDP2, or left to the caller.
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

SMALL_TABLE = 1 << 18  # elements up to which several ranks have a table whole, and it is averaged, too
_TABLES = "inputs.embeddings.tables"
_EPS = 1e-8


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


class Replicas:
    """Small tables that each of several ranks has whole, and row-wise Adagrad for them.

    A collection of one width is replicated if all its tables are small; with one rank none is. Rows that no
    rank has asked for have a gradient of zero, which changes neither them nor their sums: they are trained as
    the rows of the other tables are.

    Args:
        ranker: Whole, the same on every rank.
        lr: Learning rate.

    Attributes:
        collections: Names of the collections.
        names: Of the ranker's weights that are replicated.
        state: Sums of squared gradients as they are in use, `[rows]`, by weight and TorchRec's name for them.
    """

    def __init__(self, ranker: Ranker, lr: float) -> None:
        self._lr = lr
        self.collections: list[str] = []
        self.names: dict[str, nn.Parameter] = {}
        self.state: dict[str, dict[str, Tensor]] = {}
        self._widths: list[tuple[list[Tensor], Tensor]] = []
        for name, collection in ranker.inputs.embeddings.tables.items():
            weights = {f"{_TABLES}.{name}.{key}": weight for key, weight in collection.named_parameters()}
            if dist.get_world_size() == 1 or max(map(torch.numel, weights.values())) > SMALL_TABLE:
                continue
            sums = torch.zeros(sum(map(len, weights.values())), device=next(iter(weights.values())).device)
            own = torch.split_with_sizes(sums, [len(weight) for weight in weights.values()])
            tables: Any = collection.embeddings
            for (key, one), table in zip(zip(weights, own, strict=True), tables, strict=True):
                self.state[key] = {f"{table}.momentum1": one}
            self.collections.append(name)
            self.names |= weights
            self._widths.append(([*weights.values()], sums))

    def __contains__(self, weight: nn.Parameter) -> bool:
        return any(weight is one for one in self.names.values())

    @torch.no_grad()
    def step(self) -> None:
        """Takes the mean of all ranks' gradients; every rank must call it after its backward pass."""
        if not self.names:
            return
        flat = torch.cat(
            [
                (torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten()
                for weight in self.names.values()
            ]
        )
        dist.all_reduce(flat)
        flat.div_(dist.get_world_size())
        sizes = [sum(map(torch.numel, weights)) for weights, _ in self._widths]
        of_widths = torch.split_with_sizes(flat, sizes)
        for (weights, sums), of_width in zip(self._widths, of_widths, strict=True):
            by_row = of_width.view(len(sums), -1)
            sums.add_(by_row.square().mean(1))
            by_row.mul_(sums.sqrt().add_(_EPS).reciprocal_().mul_(-self._lr)[:, None])
            torch._foreach_add_(weights, torch.split_with_sizes(by_row, [len(weight) for weight in weights]))
        for weight in self.names.values():
            weight.grad = None


def distributed(
    ranker: Ranker, replicas: Replicas, sparse_lr: float, device: torch.device, *, ddp: bool
) -> DistributedModelParallel:
    """A ranker whose tables are sharded over the ranks, but for those of `Replicas`; every rank must call it.

    Args:
        ranker: Whole, on `device`, the same on every rank.
        replicas: Of its small tables.
        sparse_lr: Learning rate of the row-wise Adagrad of the others.
        device: Where to train.
        ddp: Whether DDP exchanges the gradients of the rest.
    """
    tables = [weight for weight in ranker.inputs.embeddings.tables.parameters() if weight not in replicas]
    apply_optimizer_in_backward(RowWiseAdagrad, tables, {"lr": sparse_lr, "eps": _EPS})
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
    for name in replicas.collections:
        del plan.plan[f"{_TABLES}.{name}"]
    return DistributedModelParallel(
        ranker,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=device,
        plan=plan,
        sharders=[sharder],
        init_data_parallel=ddp,
        # A static graph cannot leave the exchange of gradients to the last part of a step.
        data_parallel_wrapper=DefaultDataParallelWrapper(
            static_graph=False, params_to_ignore=list(replicas.names)
        ),
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
