"""How far a run in progress has come: enough to go on with the same losses, bit for bit, after a kill."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from model.config.run import Config
from model.data.steps import Position
from model.runs.files import read_state, write_file
from model.training.plan import Plan
from model.training.step import Trainer
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import git_sha

logger = logging.getLogger(__name__)

PROGRESS = "progress.pt"
CODE = ("spark_jobs", "model", "cuda_ext")  # folders whose code decides what comes out of a training


def read_progress(plan: Plan, dataset: Dataset, config: Config, partial: Path) -> dict[str, Any]:
    """What an interrupted run of the same plan had done, or a fresh start.

    Returns:
        `days` with the table version that each is read from, `state` of the trainer (None at the start),
        `losses`, `tokens` and `seconds` so far, `reached` with the day and where each rank stands in it (None
        at the start), and `git_shas`: the commits that trained, the present last.
    """
    progress: dict[str, Any] = {
        "key": plan.key(dataset, config),
        "world_size": dist.get_world_size(),
        "days": dict(plan.days),
        "state": None,
        "reached": None,
        "losses": [],
        "tokens": 0,
        "seconds": 0.0,
        "git_shas": [],
    }
    if (partial / PROGRESS).exists():
        saved = read_state(partial / PROGRESS)
        same = all(saved.get(name) == progress[name] for name in ("key", "world_size"))
        if not same or set(saved) != set(progress):
            logger.warning(
                "%s is of another plan, number of ranks or version: starting over", partial / PROGRESS
            )
        else:
            logger.info("continuing after step %d of the interrupted run", len(saved["losses"]))
            progress = saved
    code = git_sha(*CODE)
    if code not in progress["git_shas"]:
        progress["git_shas"].append(code)
        if len(progress["git_shas"]) > 1:
            logger.warning("the run is trained by several commits: %s", ", ".join(progress["git_shas"]))
    return progress


def save_progress(
    trainer: Trainer, progress: dict[str, Any], partial: Path, ds: str, position: Position
) -> None:
    """Writes how far a run has come; every rank must call it, with where it stands in the day."""
    positions: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(positions, asdict(position))
    progress["reached"] = {"ds": ds, "positions": positions}
    state = trainer.state()
    if state is not None:
        write_file(partial / PROGRESS, lambda path: torch.save({**progress, "state": state}, path))
