"""Evaluates a day's candidates beside the champion.

    python -m model.evaluate --dataset foodlog --ds 2026-03-03 --preset tiny user_tower

All score the same rows, day `ds` of one version of the samples table, which none was trained on: the runs of
the presets given, the champion, and the best version of the last days. Each run's folder gets
`evaluation.json`, `scores_candidate.parquet` and `scores_champion.parquet`, once: run again, nothing changes,
and where the day's rows or what it is measured against have changed, a further record is written beside.

No candidate of a group that GAUC compares may know a label that another does not: `*_gauc` compares frozen
scores within a user's window of the day, `*_gauc_request` live ones within a request; AUC, log loss and
calibration of live scores stand beside them, and so do item means and the simulator's oracle.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from model.config.environment import device
from model.judging.contest import Judged, evaluate
from model.registry.measures import contests_of
from model.registry.record import HEADLINES
from model.runs.store import load_run
from spark_jobs.contract import command

logger = logging.getLogger(__name__)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    runs = [load_run(dataset.name, preset, arguments.ds) for preset in arguments.preset]
    judged = evaluate(dataset, contests_of(dataset.name, runs), str(device()))
    return command.by_preset({preset: _result(one) for preset, one in judged.items()})


def _result(judged: Judged) -> dict[str, Any]:
    evaluation = judged.evaluation
    result = {name: evaluation["candidate"][name] for name in HEADLINES}
    result |= {key: evaluation[key] for key in ("dataset", "preset", "ds", "samples_version", "seconds")}
    for who in ("champion", "best"):
        if evaluation[who] is not None:
            result[who] = {name: evaluation[who][name] for name in ("version", *HEADLINES)}
    if evaluation["note"]:
        logger.warning("%s: %s", evaluation["preset"], evaluation["note"])
    return result | {"evaluation": str(judged.path), "changed": judged.changed}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates; see `command.run` for the exit codes."""
    parser = command.parser("model.evaluate", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="the day to score, YYYY-MM-DD")
    command.add_presets(parser)
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
