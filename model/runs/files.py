"""Files that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from spark_jobs.contract.command import CommandError


class RunError(CommandError):
    """A run is missing, incomplete or damaged; the message names it and what to do."""


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole by `write(neighbour)`, syncs it to the disk, then renames it.

    Raises:
        RunError: It cannot be written; names the file and the space that is left.
    """
    neighbour = path.with_name(f".{path.name}.new")
    try:
        write(neighbour)
        _sync_file(neighbour)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        free = shutil.disk_usage(path.parent).free
        neighbour.unlink(missing_ok=True)
        raise RunError(f"cannot write {path} ({free} bytes are free there): {error}") from error
    os.replace(neighbour, path)


def _sync_file(path: Path) -> None:
    """Makes a file's content durable: a rename alone may survive a power cut without it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: to a neighbour, then renamed."""
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    with neighbour.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(neighbour, path)


def sha256(*paths: Path) -> str:
    """SHA-256 over the files' bytes, one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
