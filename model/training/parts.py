"""What a rank has of tensors that ranks share, as `torch.distributed.checkpoint` wants to know it.

A tensor of a TorchRec table, of FSDP or of a replica is the same to it: some rows of a whole. So what ranks
have saved under one layout loads under another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from model.runs.files import RunError
from model.runs.sharded import ShardReader, ShardWriter


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some rows of a tensor.

    Attributes:
        tensor: The rows.
        first: Number of the first.
        shape: Of the whole tensor.
    """

    tensor: Tensor
    first: int = 0
    shape: torch.Size

    @staticmethod
    def whole(tensor: Tensor) -> Part:
        """A tensor of which this rank has all."""
        return Part(tensor=tensor, shape=tensor.shape)

    def copied(self) -> Part:
        """A copy on the CPU, which training does not change."""
        copy = self.tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return Part(tensor=copy, first=self.first, shape=self.shape)

    def size(self) -> torch.Size:
        """Shape of the whole: what the library compares."""
        return self.shape

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        """What the library's plan to write has of it."""
        (chunk,) = self.__create_chunk_list__()
        properties = TensorProperties(dtype=self.tensor.dtype)
        data = TensorWriteData(chunk=chunk, properties=properties, size=self.shape)
        index = MetadataIndex(name, chunk.offsets)
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """What the library's plan to read has of it."""
        offsets = torch.Size([self.first, *[0] * (len(self.shape) - 1)][: len(self.shape)])
        return [ChunkStorageMetadata(offsets, self.tensor.shape)]


def parts_of(tensors: dict[str, Any]) -> dict[str, Part]:
    """This rank's parts of tensors and sharded ones; it may have none of some."""
    parts = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            own = tensor.to_local().detach()
            # Rows are dealt to ranks as `torch.chunk` cuts them.
            first = tensor.device_mesh.get_local_rank() * -(-tensor.shape[0] // tensor.device_mesh.size())
            if own.numel():
                parts[name] = Part(tensor=own, first=first, shape=tensor.shape)
            continue
        if not hasattr(tensor, "local_shards"):
            parts[name] = Part.whole(tensor.detach())
            continue
        for shard in tensor.local_shards():
            rows = shard.metadata.shard_sizes[0]
            own = shard.tensor.detach().view(rows, *tensor.size()[1:])
            if own.numel():
                parts[name] = Part(tensor=own, first=shard.metadata.shard_offsets[0], shape=tensor.size())
    return parts


class _Saved(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Any:
        return self.state_dict[index.fqn].tensor


class _Loaded(DefaultLoadPlanner):
    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        tensor: Tensor = self.state_dict[index.fqn].tensor
        return tensor


def save(writer: ShardWriter, parts: dict[str, Part], group: dist.ProcessGroup) -> None:
    """Writes the parts of all ranks, each what it has, and a replica once; every rank must call it.

    Raises:
        RunError: A rank cannot; nothing has changed then.
    """
    planner = _Saved(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        state_dict_saver.save(parts, storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:
        raise RunError(_reasons(error)) from error


def load(reader: ShardReader, parts: dict[str, Part], group: dist.ProcessGroup) -> None:
    """Copies what was saved into this rank's parts, whoever had it then; every rank must call it.

    Raises:
        RunError: A rank cannot: the checkpoint is damaged, or has not got a tensor, or in another shape.
    """
    planner = _Loaded(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        state_dict_loader.load(parts, storage_reader=reader, planner=planner, process_group=group)
    except CheckpointException as error:
        raise RunError(_reasons(error)) from error


def _reasons(error: CheckpointException) -> str:
    reasons = {str(reason): rank for rank, (reason, _) in error.failures.items()}
    return "; ".join(f"rank {rank}: {reason}" for reason, rank in reasons.items())
