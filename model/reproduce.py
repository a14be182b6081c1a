"""Trains a version again and compares: `python -m model.reproduce --dataset foodlog --version 12`.

First it looks whether everything that the version was made of still exists: the samples version of each day,
the commits that trained, every training of its lineage; what is gone is named before anything is trained.
Then each training of the lineage is done again, from the first, with its own settings and with the
declaration that the version keeps, in `$MTGR_VAR/reproduced/<dataset>-<version>`, and the digests are
compared. `--from-base` does the last training alone, from the run in `$MTGR_RUNS` that it continued.

Equal digests are to be expected of the same code, device, number of ranks and threads, and PyTorch; where
these differ it says so. Exit code 0: equal. 1: not equal, or something is gone. 2: wrong usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.config.environment import device
from model.config.run import Config, TrainConfig
from model.data.encoder import arrow_schema
from model.data.reader import SamplesTable, SamplesUnavailableError
from model.registry import versions as registry
from model.registry.lineage import read_lineage
from model.registry.versions import Version
from model.runs.store import Run, complete_runs, load_run, read_config
from model.training.loop import train
from model.training.plan import Plan
from model.training.progress import CODE
from spark_jobs.contract import command, environment, locations
from spark_jobs.contract.command import RefusedError
from spark_jobs.contract.declaration import differences
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import git_sha

logger = logging.getLogger(__name__)

Link = Mapping[str, Any]


def reproduce(dataset: Dataset, number: int, *, from_base: bool = False) -> dict[str, Any]:
    """Trains a version again and says whether the digest is equal.

    Args:
        dataset: As it is declared now; the version's own declaration is what is trained with.
        number: Version.
        from_base: Whether to do its last training alone.

    Returns:
        `version`, `digest`, `reproduced` (the digest of what was trained, None if nothing was), `equal`,
        `gone` (what does not exist any more), `differs` (why equal digests are not to be expected), `run`.

    Raises:
        RegistryError: There is no such version, or its files are damaged.
        TrackingError: MLflow is not reachable, or has no lineage of the version.
        RunError, SamplesUnavailableError: Training failed.
    """
    version = registry.numbered(dataset.name, number)
    declared, config = read_config(registry.fetch(version))
    links = read_lineage(version.run_id)
    gone = _lost_days(version, links)
    base = _base_of(dataset.name, config, links) if from_base and len(links) > 1 else None
    if from_base:
        if len(links) > 1 and base is None:
            gone.append(
                f"the run that it continued, {links[-2]['digest'][:12]}, is not in {locations.runs()}"
            )
        links = links[-1:]
    gone += _lost_samples(declared, links)
    gone += _lost_commits(links)
    differs = _differences(dataset, declared, links)
    for why in differs:
        logger.warning("%s; an equal digest is not to be expected", why)
    result = {"version": number, "digest": version.digest, "gone": gone, "differs": differs}
    if gone:
        return {**result, "equal": False, "reproduced": None, "run": None}
    run = _replay(declared, config, links, base, _folder(dataset.name, number))
    return {**result, "equal": run.digest == version.digest, "reproduced": run.digest, "run": str(run.path)}


def _folder(dataset: str, number: int) -> Path:
    return locations.var() / "reproduced" / f"{dataset}-{number}"


def _base_of(dataset: str, config: Config, links: Sequence[Link]) -> Run | None:
    runs = (run for run in complete_runs(dataset, config.preset) if run.digest == links[-2]["digest"])
    run = next(runs, None)
    if run is not None:
        run.verify()
    return run


def _lost_days(version: Version, links: Sequence[Link]) -> list[str]:
    told = {day for link in links for day in link["days"]}
    lost = [day for day in version.seen_days if day not in told]
    return [f"its lineage does not say how it was trained on {', '.join(lost)}"] if lost else []


def _lost_samples(declared: Dataset, links: Sequence[Link]) -> list[str]:
    """What of the samples that the links were trained on is no longer there."""
    days: dict[int, list[str]] = {}
    for link in links:
        for day, number in link["days"].items():
            days.setdefault(int(number), []).append(day)
    identities = {str(link["samples_table"]) for link in links}
    lost = []
    for number, some in sorted(days.items()):
        try:
            table = SamplesTable(declared, number)
            if table.identity not in identities:
                lost.append(
                    f"{table.uri} is another table ({table.identity}) than the one that it was trained on "
                    f"({', '.join(sorted(identities))}), which was moved away or deleted"
                )
                break
            if missing := sorted(set(some) - set(table.days())):
                lost.append(f"version {number} of {table.uri} has no samples of {', '.join(missing)}")
            columns = {field.name for field in arrow_schema(declared)} - table.columns
            if columns:
                lost.append(f"version {number} of {table.uri} has no columns {', '.join(sorted(columns))}")
            table.require(some)
        except SamplesUnavailableError as error:
            lost.append(str(error))
    return lost


def _commits(links: Sequence[Link]) -> list[str]:
    return list(dict.fromkeys(sha for link in links for sha in str(link["git_sha"]).split(",")))


def _lost_commits(links: Sequence[Link]) -> list[str]:
    commits = (sha.removesuffix("+dirty") for sha in _commits(links) if sha != "unknown")
    return [f"the commit {sha} that trained is not in this repository" for sha in commits if not _has(sha)]


def _has(commit: str) -> bool:
    root = Path(__file__).resolve().parents[1]
    ask = ["git", "-C", str(root), "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(ask, capture_output=True, check=False, timeout=30).returncode == 0


def _differences(dataset: Dataset, declared: Dataset, links: Sequence[Link]) -> list[str]:
    """Why what is trained now need not be what was trained then."""
    if changes := differences(declared, dataset):
        logger.info("it is trained with its own declaration, today's differs: %s", "; ".join(changes))
    own = {"git_sha": git_sha(*CODE), "torch": torch.__version__, "device": device().type, "world_size": 1}
    own["threads"] = torch.get_num_threads()
    why = []
    for sha in _commits(links):
        if sha == "unknown" or sha.endswith("+dirty"):
            why.append(f"it was trained by code that no commit holds ({sha})")
        elif sha != own["git_sha"]:
            why.append(f"it was trained by the commit {sha}, this is {own['git_sha']}")
    for name in ("torch", "device", "world_size", "threads"):
        others = sorted({str(link[name]) for link in links if name in link} - {str(own[name])})
        if others:
            why.append(f"it was trained with {name} {', '.join(others)}, here it is {own[name]}")
    return why


def _replay(declared: Dataset, config: Config, links: Sequence[Link], base: Run | None, folder: Path) -> Run:
    """Does the trainings of a lineage again, one after another; returns the last one's run."""
    shutil.rmtree(folder, ignore_errors=True)
    environment.override({"MTGR_RUNS": str(folder)})
    for link in links:
        days = {day: int(number) for day, number in link["days"].items()}
        plan = Plan(
            days=days,
            version=max(days.values(), default=0),
            base=None if base is None else str(base.path),
            base_digest=None if base is None else base.digest,
            seen_days={} if base is None else base.seen_days,
        )
        settings = dataclasses.replace(config, train=TrainConfig(**link["train"]))
        train(declared, settings, link["ds"], device(), lambda *_: "", plan)
        base = load_run(declared.name, config.preset, link["ds"])
        if link.get("digest") not in (None, base.digest):
            logger.info("the training of %s gives another digest than it did", link["ds"])
    assert base is not None
    return base


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    result = reproduce(arguments.dataset, arguments.version, from_base=arguments.from_base)
    if result["gone"]:
        raise RefusedError(f"it cannot be trained again: {'; '.join(result['gone'])}", result)
    if not result["equal"]:
        raise RefusedError(f"the digest is {result['reproduced']}, registered is {result['digest']}", result)
    logger.info("the digest is equal: %s", result["digest"])
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Reproduces; see `command.run` for the exit codes."""
    parser = command.parser("model.reproduce", __doc__)
    command.add_dataset(parser)
    parser.add_argument("--version", type=int, required=True, help="number of the registered version")
    parser.add_argument(
        "--from-base", action="store_true", help="its last training alone, from the run that it continued"
    )
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
