"""Evaluates a day's candidate and the champion: `python -m model.evaluate --dataset foodlog --ds D`.

Both score the same rows, day `ds` of one version of the samples table, which neither was trained on. The
run's folder gets `evaluation.json` and `scores_candidate.parquet`, `scores_champion.parquet`.

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
from model.data.reader import SamplesUnavailableError
from model.judging.evaluation import EVALUATION, evaluate, without_nan
from model.registry import versions
from model.registry.store import TrackingError
from model.registry.versions import RegistryError
from model.runs.files import RunError
from model.runs.store import load_run
from spark_jobs.contract import command

logger = logging.getLogger(__name__)

_FAILURES = (RunError, SamplesUnavailableError, RegistryError, TrackingError, ValueError, OSError)


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    dataset = arguments.dataset
    run = load_run(dataset.name, arguments.preset, arguments.ds)
    evaluation = without_nan(evaluate(dataset, run, versions.champion(dataset.name), str(device())))
    names = ("ctr_auc", "ctr_gauc", "ctcvr_auc", "ctcvr_gauc")
    result = {name: evaluation["candidate"][name] for name in names}
    result |= {key: evaluation[key] for key in ("dataset", "preset", "ds", "samples_version", "seconds")}
    if evaluation["champion"] is not None:
        result["champion"] = {name: evaluation["champion"][name] for name in ("version", *names)}
    return result | {"evaluation": str(run.path / EVALUATION)}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates; see `command.run` for the exit codes."""
    parser = command.parser("model.evaluate", __doc__)
    command.add_dataset(parser)
    command.add_day(parser, help="the day to score, YYYY-MM-DD")
    parser.add_argument("--preset", default="tiny")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
