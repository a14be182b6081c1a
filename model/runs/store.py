"""Runs on disk: `$MTGR_RUNS/<dataset>/<preset>/<day>/`, whole or not there, and which one to continue from.

| file | what |
|---|---|
| `config.json` | dataset with its declaration, preset, model and training |
| `weights.safetensors` | the model; executes nothing when loaded |
| `checkpoint/` | weights and optimizer states to continue from, a file a rank; see `model.runs.sharded` |
| `changes.safetensors` | which rows of its base's weights it changed; see `model.embeddings.changes` |
| `train.json` | days seen with their table versions, base, lineage, losses, digest |
| `evaluation.json`, `scores_*.parquet` | written by `model.evaluate` |

A run in progress lies in `.<day>.partial`; it becomes `<day>` by one rename, once its files are on the disk.
Each day is trained once in a version's lineage: a run continues from the newest run whose days all come
before the first day it has not seen, and whose declaration means the same to a model.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config.run import Config
from model.runs.files import RunError, sha256, sync_folder, write_text
from spark_jobs.contract import locations
from spark_jobs.contract.clock import parse_day
from spark_jobs.contract.declaration import from_dict, to_dict
from spark_jobs.contract.features import Dataset

logger = logging.getLogger(__name__)

CHANGES = "changes.safetensors"
CONFIG, WEIGHTS, CHECKPOINT, RECORD = "config.json", "weights.safetensors", "checkpoint", "train.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A complete run.

    Attributes:
        path: Its folder.
        record: What `train.json` says.
    """

    path: Path
    record: dict[str, Any]

    @property
    def ds(self) -> str:
        """The day it was made for: it has seen days before this one."""
        return str(self.record["ds"])

    @property
    def seen_days(self) -> dict[str, int]:
        """Days it was trained on, with the version of the samples table that each was read from."""
        return dict(self.record["seen_days"])

    @property
    def digest(self) -> str:
        """SHA-256 over its config and weights."""
        return str(self.record["digest"])

    def config(self) -> tuple[Dataset, Config]:
        """Its dataset and config."""
        return read_config(self.path)

    def verify(self) -> None:
        """Checks config and weights against the digest.

        Raises:
            RunError: They differ.
        """
        digest = digest_of(self.path)
        if digest != self.digest:
            raise RunError(f"{self.path} is damaged: its digest is {digest}, train.json says {self.digest}")


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The champion with its files.

    Attributes:
        version: Its number in the registry.
        digest: SHA-256 of its config and weights, checked.
        path: Folder with `config.json` and `weights.safetensors`.
    """

    version: int
    digest: str
    path: Path


def write_config(path: Path, dataset: Dataset, config: Config) -> None:
    """Writes `config.json`: a run keeps the declaration that it was made with."""
    write_text(path / CONFIG, config.to_json(dataset=dataset.name, declaration=to_dict(dataset)))


def read_config(path: Path) -> tuple[Dataset, Config]:
    """Dataset, as it was declared then, and config in a folder with `config.json`.

    Raises:
        RunError: The file is missing or not a config.
    """
    try:
        values = json.loads((path / CONFIG).read_text())
        if "declaration" not in values:
            raise ValueError("it keeps no declaration, as runs of earlier versions; train again")
        return from_dict(values["declaration"]), Config.from_dict(values)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path / CONFIG} cannot be read: {error}") from error


def digest_of(path: Path) -> str:
    """SHA-256 over `config.json` and `weights.safetensors` in a folder."""
    return sha256(path / CONFIG, path / WEIGHTS)


def run_path(dataset: str, preset: str, ds: str) -> Path:
    """Folder of the run made for day `ds`."""
    parse_day(ds)
    return locations.runs() / dataset / preset / ds


def partial_path(path: Path) -> Path:
    """Where a run is made before it becomes `path`."""
    return path.with_name(f".{path.name}.partial")


def load_run(dataset: str, preset: str, ds: str) -> Run:
    """The run made for a day.

    Raises:
        RunError: There is none.
    """
    path = run_path(dataset, preset, ds)
    run = _read(path)
    if run is None:
        raise RunError(
            f"there is no run at {path}; train it: "
            f"python -m model.train --dataset {dataset} --preset {preset} --ds {ds}"
        )
    return run


def complete_runs(dataset: str, preset: str) -> list[Run]:
    """All complete runs of a dataset and preset, by day."""
    folder = locations.runs() / dataset / preset
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    runs = [_read(folder / name) for name in names if not name.startswith(".") and "." not in name]
    return [run for run in runs if run is not None]


def base_of(runs: list[Run], days: list[str], ds: str, fits: Callable[[Run], bool]) -> Run | None:
    """The run to continue from so that all of `days` are seen, in order; None to start from scratch.

    The newest run that has seen days before `ds` alone, all of them before the first day it has not seen: a
    day that was repaired after later ones were trained rewinds to before it. That days which it has seen are
    no longer in the table (retention, privacy) is no reason to forget them all.

    Args:
        runs: Complete runs, by day.
        days: Days with samples before `ds`, ascending.
        ds: Day to make a run for.
        fits: Whether a run can be continued; asked of the best first.
    """
    ordered = sorted(enumerate(runs), key=lambda pair: (len(pair[1].seen_days), pair[0]), reverse=True)
    for _, run in ordered:
        seen = set(run.seen_days)
        unseen = [day for day in days if day not in seen]
        if seen and max(seen) < ds and (not unseen or max(seen) < unseen[0]) and fits(run):
            return run
    return None


def publish(partial: Path, record: dict[str, Any]) -> Run:
    """Makes a finished partial folder the run of its day, replacing an older one.

    Args:
        partial: Folder with all files but `train.json`.
        record: Content of `train.json` but for the digest.
    """
    record = {**record, "digest": digest_of(partial)}
    write_text(partial / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return _rename(Run(path=partial, record=record))


def finish(partial: Path, days: set[str], is_wanted: Callable[[Run], bool]) -> Run | None:
    """Renames a partial folder that lacks nothing else, if it has seen exactly `days`: a run killed there."""
    run = _read(partial)
    if run is None or set(run.seen_days) != days:
        return None
    run.verify()
    return _rename(run) if is_wanted(run) else None


def _rename(run: Run) -> Run:
    partial = run.path
    path = partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))
    replaced = path.with_name(f".{path.name}.replaced")
    sync_folder(partial)
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(path, replaced)
    os.replace(partial, path)
    sync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    return Run(path=path, record=run.record)


@contextlib.contextmanager
def exclusively(folder: Path, doing: str = "training") -> Iterator[None]:
    """The right to change what lies in `folder`: the runs of a preset, the packages of a dataset.

    Raises:
        RunError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"another process is {doing} in {folder} (it holds {lock}); wait for it"
            ) from error
        yield


def presets_with_runs(dataset: str) -> list[str]:
    """Presets of which there are runs, or beginnings of them."""
    folder = locations.runs() / dataset
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def remove(run: Run) -> None:
    """Deletes a run; the caller holds `exclusively`. Interrupted, it leaves nothing that counts as a run."""
    removed = run.path.with_name(f".{run.path.name}.replaced")
    shutil.rmtree(removed, ignore_errors=True)
    os.replace(run.path, removed)
    shutil.rmtree(removed)


def _read(path: Path) -> Run | None:
    try:
        return Run(path=path, record=json.loads((path / RECORD).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RunError(f"{path / RECORD} is not JSON ({error}); remove {path} and train again") from error
