"""How far a run in progress has come: enough to go on with the same losses, bit for bit, after a kill."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.config.run import Config
from model.data.steps import Position
from model.runs.files import RunError
from model.runs.sharded import ShardReader
from model.training.parts import Part
from model.training.plan import Plan
from model.training.saver import Saver
from model.training.step import Trainer
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import git_sha

logger = logging.getLogger(__name__)

_PROGRESS = "progress-"  # and the number of steps that were taken
CODE = ("spark_jobs", "model", "cuda_ext")  # folders whose code decides what comes out of a training


def read_progress(
    plan: Plan, dataset: Dataset, config: Config, partial: Path
) -> tuple[dict[str, Any], ShardReader | None]:
    """What an interrupted run of the same plan had done, or a fresh start.

    Returns:
        `days` with the table version that each is read from, `losses`, `tokens` and `seconds` so far,
        `reached`, the day it stands in (None at the start), and `git_shas`: the commits that trained, the
        present last; and the checkpoint to go on from, if any.
    """
    progress: dict[str, Any] = {
        "key": plan.key(dataset, config),
        "world_size": dist.get_world_size(),
        "days": dict(plan.days),
        "reached": None,
        "losses": [],
        "tokens": 0,
        "seconds": 0.0,
        "git_shas": [],
    }
    reader = _newest(partial)
    if reader is not None:
        saved = reader.values
        same = all(saved.get(name) == progress[name] for name in ("key", "world_size"))
        if same and set(saved) == set(progress):
            logger.info("continuing after step %d of the interrupted run", len(saved["losses"]))
            progress = saved
        else:
            logger.warning("%s is of another plan, number of ranks or version: starting over", reader.path)
            reader = None
    code = git_sha(*CODE)
    if code not in progress["git_shas"]:
        progress["git_shas"].append(code)
        if len(progress["git_shas"]) > 1:
            logger.warning("the run is trained by several commits: %s", ", ".join(progress["git_shas"]))
    return progress, reader


def _newest(partial: Path) -> ShardReader | None:
    """The newest whole checkpoint: from an older one a run goes on to the same bits, only later."""
    for path in sorted(partial.glob(f"{_PROGRESS}*"), reverse=True):
        try:
            return ShardReader(path)
        except RunError as error:
            logger.warning("the checkpoint before is taken: %s", error)
    return None


def position_in(reader: ShardReader) -> Position:
    """Where this rank stood in the day."""
    place = reader.tensor(f"position/{dist.get_rank()}").tolist()
    fields = [field.name for field in dataclasses.fields(Position)]
    return Position(**dict(zip(fields, place, strict=True)))


def save_progress(
    saver: Saver, trainer: Trainer, progress: dict[str, Any], partial: Path, ds: str, position: Position
) -> None:
    """Begins to write how far a run has come; every rank must call it, with where it stands in the day."""
    progress["reached"] = ds
    place = torch.tensor(dataclasses.astuple(position))
    state = trainer.state() | {f"position/{dist.get_rank()}": Part.whole(place)}
    values = {**progress, "losses": list(progress["losses"]), "git_shas": list(progress["git_shas"])}
    path = partial / f"{_PROGRESS}{trainer.num_steps:012d}"
    saver.save(path, state, values, trainer.config.train.checkpoints)


def remove_progress(path: Path) -> None:
    """Removes what a finished run needs no more, half-written checkpoints too."""
    for old in path.glob(f"*{_PROGRESS}*"):
        shutil.rmtree(old)
