"""The changed rows of a day, applied to a package that serves: the later version without its whole weights.

    weights = later_weights(package, run.path / CHANGES)
    ranker = package.ranker(device, weights)              # scores as the later version

What a training writes beside its weights (`changes.safetensors`, docs/tables.md) names the version that it
was made from and the one that it leads to, by digest. Both are checked: the second over what was made, so
that a file that is damaged, or of other weights, changes nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from model.embeddings.changes import applied
from model.runs.store import CONFIG
from model.serving.package import Package, PackageError


def later_weights(package: Package, changes: Path) -> dict[str, Tensor]:
    """Weights of the version that a file of changes leads to, to the bit.

    Args:
        package: Of the version that it starts from.
        changes: A run's `changes.safetensors`.

    Raises:
        PackageError: It cannot be read, starts from another version, or does not lead to the one it names:
            damaged, or of a run with another config. Names the digests; export the later version then.
    """
    try:
        with safe_open(changes, "pt") as file:
            versions = dict(file.metadata() or {})
        changed = load_file(changes)
    except (OSError, SafetensorError) as error:
        raise PackageError(f"{changes} cannot be read: {error}; export the later version") from error
    if versions.get("from") != package.digest:
        raise PackageError(
            f"{changes} starts from the digest {versions.get('from')}, {package.path} has {package.digest}: "
            "export the later version"
        )
    try:
        weights = applied(package.weights(), changed)
    except (KeyError, IndexError, RuntimeError) as error:
        raise PackageError(
            f"{changes} does not fit {package.path} ({error}): export the later version"
        ) from error
    made = hashlib.sha256((package.path / CONFIG).read_bytes() + save(weights)).hexdigest()
    if made != versions.get("to"):
        raise PackageError(
            f"{changes} leads to the digest {made}, expected is {versions.get('to')}: export the later "
            "version"
        )
    return weights
