"""Writes checkpoints while training goes on: a copy is taken at once, a thread brings it to disk."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from model.runs.sharded import ShardWriter
from model.training.parts import Part, save

_JOIN_SECONDS = 10.0  # after an error: a thread may wait for another rank that has gone


class Saver:
    """Writes one checkpoint at a time; a context, which leaves no thread behind.

    Args:
        group: All ranks; while a checkpoint is being written nothing else may use it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, path: Path, state: dict[str, Part], values: dict[str, Any], keep: int = 1) -> None:
        """Begins to write a checkpoint, once the one before is written; every rank must call it.

        Args:
            path: Its folder.
            state: This rank's part; nobody may change it.
            values: What is kept beside it, of rank 0.
            keep: So many of the folders whose names begin as `path`'s does, up to a `-`, stay.

        Raises:
            RunError: As `wait`, of the checkpoint before.
        """
        self.wait()
        writer = ShardWriter(path, values)
        self._thread = threading.Thread(
            target=self._write, args=(writer, state, keep), name=f"writer of {path.name}", daemon=True
        )
        self._thread.start()

    def wait(self) -> bool:
        """Waits until what was begun is on the disk of every rank; whether anything was.

        Raises:
            RunError: A rank could not write.
        """
        if self._thread is None:
            return False
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _write(self, writer: ShardWriter, state: dict[str, Part], keep: int) -> None:
        try:
            save(writer, state, self._group)
            if dist.get_rank() == 0:
                kept = f"{writer.path.name.partition('-')[0]}-*"
                for old in sorted(writer.path.parent.glob(kept))[:-keep]:
                    shutil.rmtree(old)
        except BaseException as error:  # raised again by the thread that waits
            self._error = error

    def __enter__(self) -> Saver:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the thread; after an error not for ever, since other ranks may have gone."""
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
