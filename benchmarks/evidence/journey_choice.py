r"""Chooses rankers' settings on journey's weeks 47 and 48, as many trials for each, then trains the chosen.

    python -m benchmarks.evidence.journey_choice --families tiny user_tower dcn wukong --budget 10 \
        --out var/journey --together 8 --seeds 1 2 3

The first trial of a family is its preset as it is; the others are drawn by chance, since they run side by
side and none can learn from another (`choice.py` asks Optuna). The draws are the same for all families, so
that none is luckier than another, with `num_blocks` for those that have blocks, and but for what is beyond
the paper for the paper's MTGR. A trial learns the days of
`--choose-from` up to week 47 and is worth its conversion GAUC by trip in weeks 47 and 48. Then the best of
each family learns the days from `--from` up to week 49 for each seed and scores the test weeks, once. Trials
lie below `<out>/trials`, scores of the test weeks below `<out>/test`: what is there is not made again, and
where trials were cut off each family has as many as the one that has fewest. `--only trials` or `--only test`
does one of the two.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.journey import add_together, side_by_side
from benchmarks.evidence.scored import TEST_DAYS
from model.config.presets import config_of, preset_named
from model.rankers.mtgr import MtgrConfig
from model.runs.files import write_text
from spark_jobs.contract import command
from spark_jobs.contract.command import CommandError

logger = logging.getLogger(__name__)

SPACE: dict[str, tuple[Any, ...]] = {
    "train.dense_lr": (5e-4, 1e-3),
    "train.sparse_lr": (0.001, 0.0025, 0.005, 0.01),
    "train.passes": (1, 2),
    "train.frozen_share": (0.0, 0.3),
    "train.weight_decay": (0.01, 0.1),
    "model.max_static": (50, 200),
    "model.d_model": (64, 128),
    "model.token_hidden": (128, 256),
    "model.token_layers": (1, 2),
    "model.shares_items": (False, True),
    "train.listwise": (0.0, 1.0),
}
BEYOND = ("model.shares_items", "train.listwise")  # the paper's MTGR has neither
BLOCKS = ("model.num_blocks", (1, 2, 3))
# Days that trials learn from, and that they are scored on: weeks 47 and 48.
CHOICE = {"first": "2017-08-07", "test_first": "2017-11-13", "test_last": "2017-11-26"}


def trials_of(family: str, budget: int) -> list[str]:
    """Models to try, as `presets.config_of` reads them: the preset, then drawn ones, all different."""
    sizes = preset_named(family).model
    has_blocks = "num_blocks" in {field.name for field in dataclasses.fields(sizes)}
    left_out = {*(() if has_blocks else (BLOCKS[0],)), *(BEYOND if type(sizes) is MtgrConfig else ())}
    rng = np.random.default_rng(1)
    models = [family]
    while len(models) < budget:
        space = {**SPACE, BLOCKS[0]: BLOCKS[1]}
        drawn = {name: values[int(rng.integers(len(values)))] for name, values in space.items()}
        drawn = {name: value for name, value in drawn.items() if name not in left_out}
        changes = [f"{name}={value}" for name, value in drawn.items() if value != _of_preset(family, name)]
        model = ",".join([family, *changes])
        config_of(model)
        if model not in models:
            models.append(model)
    return models


def _of_preset(family: str, place: str) -> Any:
    part, _, name = place.partition(".")
    return getattr(getattr(preset_named(family), part), name)


def value_of(folder: Path, model: str) -> float | None:
    """Conversion GAUC by trip of a trial; None if it is not done."""
    path = folder / model / "1.json"
    if not path.exists():
        return None
    return float(json.loads(path.read_text())["metrics"]["ctcvr_gauc_request"])


def chosen(folder: Path, families: Sequence[str], budget: int) -> dict[str, Any]:
    """By family the best of as many trials as each has, with all of them.

    Raises:
        CommandError: A family has no trial.
    """
    values = {
        family: {model: value_of(folder, model) for model in trials_of(family, budget)} for family in families
    }
    done = {family: [m for m, value in of.items() if value is not None] for family, of in values.items()}
    equal = min(map(len, done.values()))
    if not equal:
        raise CommandError(f"{folder} has no trial of {min(done, key=lambda one: len(done[one]))}")
    result = {}
    for family, models in done.items():
        tried = {model: values[family][model] for model in models[:equal]}
        best = max(tried, key=lambda model: tried[model] or 0.0)
        result[family] = {"model": best, "value": tried[best], "trials": tried}
    return result


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    trials = {family: trials_of(family, arguments.budget) for family in arguments.families}
    folder = arguments.out / "trials"
    if arguments.only != "test":
        # In turn, so that families have equally many when time is up.
        jobs = [(models[k], 1) for k in range(arguments.budget) for models in trials.values()]
        jobs = [(model, seed) for model, seed in jobs if value_of(folder, model) is None]
        _side_by_side(jobs, arguments, out=folder, **{**CHOICE, "first": arguments.choose_first})
    best = chosen(folder, arguments.families, arguments.budget)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / "chosen.json", json.dumps(best, indent=1) + "\n")
    if arguments.only != "trials":
        models = [one["model"] for one in best.values()] + arguments.also
        out = arguments.out / "test"
        jobs = [(model, seed) for seed in arguments.seeds for model in models]
        jobs = [(model, seed) for model, seed in jobs if not (out / model / f"{seed}.json").exists()]
        days = {"first": arguments.first, "test_first": TEST_DAYS[0], "test_last": TEST_DAYS[-1]}
        _side_by_side(jobs, arguments, out=out, **days)
    return {family: [one["model"], one["value"], len(one["trials"])] for family, one in best.items()}


def _side_by_side(jobs: list[tuple[str, int]], arguments: argparse.Namespace, **changes: Any) -> None:
    of_jobs = argparse.Namespace(**{**vars(arguments), **changes})
    if failed := side_by_side(jobs, of_jobs):
        raise CommandError(f"{', '.join(failed)} failed: see the logs below {of_jobs.out}")


def main(argv: Sequence[str] | None = None) -> int:
    r"""Chooses, trains and scores; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.journey_choice", __doc__)
    parser.add_argument("--families", nargs="+", default=["tiny", "user_tower", "dcn", "wukong"])
    parser.add_argument("--budget", type=int, default=10, help="trials of every family")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--also", nargs="+", default=[], metavar="MODEL", help="scored without a choice")
    for name, dest, default, what in (
        ("--choose-from", "choose_first", CHOICE["first"], "first day that trials learn"),
        ("--from", "first", "2017-03-20", "first day that the chosen learn"),
    ):
        command.add_day(parser, name, dest=dest, required=False, default=default, help=what)
    parser.add_argument("--out", type=Path, required=True, help="folder of trials, scores and runs")
    add_together(parser)
    parser.add_argument("--only", choices=("trials", "test"), help="default: both")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
