"""Storage of `torch.distributed.checkpoint`: a folder with a safetensors file a rank and a manifest in JSON.

That library plans who writes and who reads what. Its own storage is not used: its metadata are a pickle, and
its safetensors storage has none, so that a rank's file that is missing is not missed. Here the manifest names
every tensor, its pieces, and every file with its bytes; nothing that is read executes anything.

A checkpoint is written into `.<name>.new`, synced to the disk, and renamed once, by rank 0, after every rank
has written: it is there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from model.runs.files import RunError, sync_folder, write_file, write_text

MANIFEST = "manifest.json"
_FORMAT = 1


def _key(name: str, offset: torch.Size | None) -> str:
    """Name of a piece within its file: a rank may have several pieces of one tensor."""
    return "@".join([name, *map(str, offset or ())])


class ShardWriter(StorageWriter):
    """Writes a checkpoint.

    Args:
        path: Its folder; one that is there already is replaced.
        values: What is kept beside the tensors, as JSON; rank 0's are.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self._values = values
        self._new = path.with_name(f".{path.name}.new")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Rank 0 makes the folder, before any rank is told what to write."""
        if is_coordinator:
            shutil.rmtree(self._new, ignore_errors=True)
            self._new.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Each rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tells each rank its file."""
        files = [f"rank_{rank}.safetensors" for rank in range(len(plans))]
        return [dataclasses.replace(plan, storage_data=file) for plan, file in zip(plans, files, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's file.

        Raises:
            RunError: It cannot be written.
        """
        tensors = {}
        for item in plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            tensors[_key(item.index.fqn, item.index.offset)] = tensor.contiguous()
        write_file(self._new / plan.storage_data, lambda path: save_file(tensors, path))
        future: Future[list[WriteResult]] = Future()
        future.set_result(
            [
                WriteResult(index=item.index, size_in_bytes=tensor.nbytes, storage_data=plan.storage_data)
                for item, tensor in zip(plan.items, tensors.values(), strict=True)
            ]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Rank 0 writes the manifest, once all ranks have written, and gives the folder its name."""
        file_of = {write.index: write.storage_data for of_rank in results for write in of_rank}
        tensors = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            tensors[name] = {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "shape": list(tensor.size),
                "pieces": [
                    {
                        "file": file_of[MetadataIndex(name, chunk.offsets)],
                        "offset": list(chunk.offsets),
                        "shape": list(chunk.sizes),
                    }
                    for chunk in tensor.chunks
                ],
            }
        files = {path.name: path.stat().st_size for path in sorted(self._new.glob("rank_*.safetensors"))}
        manifest = {"format": _FORMAT, "files": files, "tensors": tensors, "values": self._values}
        write_text(self._new / MANIFEST, json.dumps(manifest, sort_keys=True) + "\n")
        sync_folder(self._new)
        shutil.rmtree(self.path, ignore_errors=True)
        os.replace(self._new, self.path)
        sync_folder(self.path.parent)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """This storage is asked for by name, never guessed."""
        return False


class ShardReader(StorageReader):
    """Reads a checkpoint.

    Args:
        path: Its folder.

    Raises:
        RunError: It is missing, not whole, or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest["format"] != _FORMAT:
                raise ValueError(f"it is of format {manifest['format']}, this code reads {_FORMAT}")
            for file, size in manifest["files"].items():
                has = (path / file).stat().st_size
                if has != size:
                    raise ValueError(f"{file} has {has} bytes of {size}")
            self.values: dict[str, Any] = manifest["values"]
            self.num_ranks = len(manifest["files"])
            self._tensors: dict[str, Any] = manifest["tensors"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors that begin so."""
        return [name for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> torch.Size:
        """Shape of a whole tensor."""
        return torch.Size(self._tensors[name]["shape"])

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, its pieces joined by rows.

        Raises:
            RunError: A file is damaged.
        """
        pieces = sorted(self._tensors[name]["pieces"], key=lambda piece: piece["offset"])
        parts = []
        for piece in pieces:
            with self._opened(piece["file"]) as file:
                parts.append(file.get_tensor(_key(name, piece["offset"])))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from one reading to the next."""

    def read_metadata(self) -> Metadata:
        """What is there, in the library's words."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=getattr(torch, tensor["dtype"])),
                    size=torch.Size(tensor["shape"]),
                    chunks=[
                        ChunkStorageMetadata(torch.Size(piece["offset"]), torch.Size(piece["shape"]))
                        for piece in tensor["pieces"]
                    ],
                )
                for name, tensor in self._tensors.items()
            },
            storage_data={
                MetadataIndex(name, piece["offset"]): piece["file"]
                for name, tensor in self._tensors.items()
                for piece in tensor["pieces"]
            },
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Takes note of where the pieces are."""
        self._file_of: dict[MetadataIndex, str] = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Each rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """All plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copies what a rank needs, and no more of a piece than that, into its tensors.

        Raises:
            RunError: A file is damaged.
        """
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self._file_of[item.storage_index]].append(item)
        for name, items in by_file.items():
            with self._opened(name) as file:
                for item in items:
                    key = _key(item.storage_index.fqn, item.storage_index.offset)
                    ranges = zip(item.storage_offsets, item.lengths, strict=True)
                    slices = tuple(slice(first, first + length) for first, length in ranges)
                    read = file.get_slice(key)[slices] if slices else file.get_tensor(key)
                    own = planner.resolve_tensor(item)
                    own.detach().copy_(read)
                    planner.commit_tensor(item, own)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """This storage is asked for by name, never guessed."""
        return False

    @contextlib.contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        try:
            with safe_open(self.path / file, framework="pt") as opened:
                yield opened
        except (OSError, SafetensorError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> RunError:
        return RunError(
            f"{self.path} cannot be read ({error}); remove {self.path.parent} and train again from an older "
            "run"
        )
