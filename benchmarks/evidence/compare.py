r"""Compares rankers by one protocol on a log's samples, tuned alike, and writes what came of it.

    python -m benchmarks.evidence.compare --dataset foodlog --learn 2026-03-10 2026-03-19 \
        --choose 2026-03-20 2026-03-22 --test 2026-03-23 2026-03-24

Every contender chooses its settings by as many trials on days before the test days; then it learns all days
before the first test day, scores it, learns it, scores the next, for each seed. Trials and scores are kept
below `--work` (default `$MTGR_VAR/compared/<dataset>`) as they come: a run that was cut off goes on with what
is missing, and `--models` may name a few at a time. Each time the result file
`benchmarks/results/evidence_<dataset>.json` is made of all that is there. Beside the contenders stand the
item's means, the oracle where there is one, and a control that knows earlier labels alone. Optuna and
LightGBM are no dependencies of the project: `make evidence` installs them.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.evidence.choice import choose
from benchmarks.evidence.contenders import CONTENDERS, DLRM
from benchmarks.evidence.days import Days
from benchmarks.evidence.trial import Frame, frame_of, joined
from benchmarks.evidence.worth import TASKS, control, difference, of_seeds, segments
from model.data.reader import SamplesTable
from model.judging.baselines import oracle
from model.judging.evaluation import metrics_of, without_nan
from model.runs.files import write_text
from spark_jobs.contract import command, locations
from spark_jobs.contract.clock import days_between
from spark_jobs.contract.command import UsageError
from spark_jobs.lake.log import git_sha

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).resolve().parents[1] / "results"
REFERENCE = "user_tower"  # the article's best before MTGR


def main(argv: Sequence[str] | None = None) -> int:
    """Compares; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.evidence.compare", __doc__)
    command.add_dataset(parser)
    for name in ("learn", "choose", "test"):
        command.add_day(parser, f"--{name}", nargs=2, help="first and last day, YYYY-MM-DD")
    parser.add_argument("--models", nargs="+", default=list(CONTENDERS), help="default: all contenders")
    parser.add_argument("--budget", type=int, default=4, help="trials of every contender")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, help="default: $MTGR_VAR/compared/<dataset>")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/evidence_<dataset>.json")

    def body(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
        if unknown := sorted(set(arguments.models) - set(CONTENDERS)):
            raise UsageError(f"unknown contender {unknown[0]!r}; known: {', '.join(CONTENDERS)}")
        torch.set_num_threads(1)
        dataset = arguments.dataset
        days = Days(
            **{name: tuple(days_between(*getattr(arguments, name))) for name in ("learn", "choose", "test")}
        )
        work = arguments.work or locations.var() / "compared" / dataset.name
        samples = SamplesTable(dataset)
        settings = {}
        for name in arguments.models:
            tuned_as = CONTENDERS[name].tuned_as or name
            settings[name] = choose(
                tuned_as, CONTENDERS[tuned_as], samples, days, arguments.budget, work / "trials"
            )
            for seed in arguments.seeds:
                score(name, settings[name], seed, samples, days, work / "scores")
        about = {"command": "python -m benchmarks.evidence.compare", "budget": arguments.budget}
        report = without_nan(report_of(samples, days, work) | about)
        out = arguments.out or RESULTS / f"evidence_{dataset.name}.json"
        write_text(out, json.dumps(report, indent=1, sort_keys=True) + "\n")
        return {"out": str(out), **report["summary"]}

    return command.run(parser, body, argv)


def score(
    name: str, settings: Mapping[str, Any], seed: int, samples: SamplesTable, days: Days, folder: Path
) -> None:
    """Writes `<folder>/<name>-<seed>.npz`, the scores of the test days, and then `.json` beside it, once."""
    path = folder / f"{name}-{seed}.json"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(
        CONTENDERS[name].scored_days(samples, settings, seed, (*days.learn, *days.choose), days.test)
    )
    scores = joined([of_day for _, of_day, _ in parts])
    np.savez(folder / f"{name}-{seed}.npz", **scores)  # type: ignore[arg-type]
    told = {"settings": dict(settings), "seconds": round(sum(seconds for _, _, seconds in parts), 1)}
    write_text(path, json.dumps(told, indent=1) + "\n")
    logger.info("%s, seed %d: scored in %.1f s of training", name, seed, told["seconds"])


def load(path: Path) -> Frame:
    """What `np.savez` wrote."""
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def report_of(samples: SamplesTable, days: Days, work: Path) -> dict[str, Any]:
    """The result: every contender whose scores are there, its differences, baselines, and the summary."""
    dataset, folder = samples.dataset, work / "scores"
    frame, baselines = frame_of(samples, days.test)
    scores: dict[str, dict[int, Frame]] = {}
    for name in CONTENDERS:
        for path in sorted(folder.glob(f"{name}-[0-9]*.npz")):
            scores.setdefault(name, {})[int(path.stem.rpartition("-")[2])] = load(path)
    best = best_of(dataset, frame, scores, [name for name in DLRM if name in scores])
    models = {}
    for name, seeds in scores.items():
        told = [json.loads((folder / f"{name}-{seed}.json").read_text()) for seed in seeds]
        models[name] = {
            "family": CONTENDERS[name].family,
            "settings": told[0]["settings"],
            "train_seconds": [one["seconds"] for one in told],
            **of_seeds(dataset, frame, seeds),
            "segments": segments(frame, list(seeds.values())),
            "minus": {
                other: difference(dataset, frame, list(seeds.values()), list(scores[other].values()))
                for other in dict.fromkeys((REFERENCE, best, "lightgbm", "lambdarank", "tiny", "no_cross"))
                if other in scores and other != name
            },
        }
    baselines["earlier labels alone"] = control(frame)
    for title, knows in (("oracle", "all"), ("oracle of the session's clicks", "session")):
        truth = [
            oracle(dataset, day, frame["impression_id"][_of_day(dataset, frame, day)], knows)
            for day in days.test
        ]
        if all(one is not None for one in truth):
            baselines[title] = joined([one for one in truth if one is not None])
    measured = {name: metrics_of(dataset, frame, one) for name, one in baselines.items()}
    return {
        "dataset": dataset.name,
        "days": {"learn": days.learn, "choose": days.choose, "test": days.test},
        "candidates": len(frame["user_id"]),
        "models": models,
        "baselines": measured,
        "best_dlrm": best,
        "summary": summary_of(dataset.name, models, measured, best),
        "commit": git_sha("model", "spark_jobs", "cuda_ext", "benchmarks"),
        "python": platform.python_version(),
        "card": "CPU, one thread",
        "versions": {name: version(name) for name in ("torch", "torchrec", "optuna", "lightgbm")},
    }


def _of_day(dataset: Any, frame: Frame, day: str) -> Any:
    start, end = dataset.day_start_ms(day), dataset.day_end_ms(day)
    return (frame["window_start_ms"] >= start) & (frame["window_start_ms"] < end)


def best_of(
    dataset: Any, frame: Frame, scores: Mapping[str, Mapping[int, Frame]], names: Sequence[str]
) -> str:
    """The one of several with the highest mean CTCVR GAUC over seeds."""
    if not names:
        raise UsageError(f"none of {', '.join(DLRM)} has scores yet: name one in --models")
    return max(
        names,
        key=lambda name: float(
            np.mean([metrics_of(dataset, frame, one)["ctcvr_gauc"] for one in scores[name].values()])
        ),
    )


def summary_of(
    dataset: str, models: Mapping[str, Any], baselines: Mapping[str, Any], best: str
) -> dict[str, float]:
    """Flat figures: MTGR's own, its differences with their ends, and its part of the gap to the oracle."""
    flat: dict[str, float] = {}
    if "tiny" not in models:
        return flat
    ours = models["tiny"]
    for task in TASKS:
        flat[f"{dataset}_mtgr_{task}_gauc"] = ours["mean"][f"{task}_gauc"]
        flat[f"{dataset}_mtgr_{task}_auc"] = ours["mean"][f"{task}_auc"]
        gain = ours["minus"][best][task]
        end = "" if task == "ctcvr" else f"_{task}"
        flat[f"{dataset}_mtgr_minus_best_dlrm{end}"] = gain["gain"]
        flat[f"{dataset}_mtgr_minus_best_dlrm{end}_low"] = gain["low"]
        flat[f"{dataset}_mtgr_minus_best_dlrm{end}_high"] = gain["high"]
        if "oracle" in baselines:
            gap = baselines["oracle"][f"{task}_gauc"] - models[best]["mean"][f"{task}_gauc"]
            flat[f"{dataset}_gap_closed_{task}"] = gain["gain"] / gap
    return {name: round(value, 5) for name, value in flat.items()}


if __name__ == "__main__":
    sys.exit(main())
