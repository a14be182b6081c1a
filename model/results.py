"""Measures models as daily runs would: `python -m model.results --dataset kuairand --days D [D ...]`.

For each model and seed: a run is trained on all days before the first day, scored on it, continued over that
day, scored on the next, and so on; the samples table must hold the days. Beside the models stand the item
means and, where there is one, the oracle, on the same rows. Writes `benchmarks/results/<dataset>.json`:
metrics by seed and day, pooled over the days with (user, window) as GAUC's groups, mean and standard
deviation over seeds, versions. A model is a preset with changed fields, if any: `tiny` or
`tiny,train.warmup_steps=50`.

Runs and their tracking lie apart, in `$MTGR_VAR/results/<what made them>`: the same code, config and table
go on from them, others start afresh. `--table` prints what `docs/model.md` shows of the files.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import platform
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config.environment import device, installed_fbgemm
from model.config.presets import config_of
from model.config.run import Config
from model.data.reader import SamplesTable
from model.judging.baselines import oracle
from model.judging.evaluation import Array, metrics_of, score_day
from model.judging.scoring import Scorer
from model.registry import record
from model.runs.files import write_text
from model.runs.store import load_run
from model.training.loop import train
from spark_jobs.contract import command, locations
from spark_jobs.contract import environment as variables
from spark_jobs.contract.command import UsageError
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import git_sha

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
FILES = ("foodlog", "kuairand", "kuairand_choice")  # what docs/model.md shows
_DEFAULT = ("tiny", "user_tower")
Scores = dict[str, Array]


def measure(
    dataset: Dataset, config: Config, days: Sequence[str], device: torch.device, folder: Path
) -> Iterator[tuple[str, Scores, dict[str, Scores], float]]:
    """Trains and scores one model over consecutive days.

    Yields:
        Day, frame of its candidates, scores by name (`model`, the baselines), seconds of training.

    Raises:
        RunError: There are no samples before the first day.
        SamplesUnavailableError: A day has no samples.
    """
    variables.override(
        {"MTGR_RUNS": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder.parent}/mlflow.db"}
    )
    for day in days:
        seconds = float(train(dataset, config, day, device, record.log_training)["seconds"])
        run = load_run(dataset.name, config.preset, day)
        samples = SamplesTable(dataset, int(run.record["samples_version"]))
        frame, scores = score_day(samples, day, {"model": Scorer.load(run.path, device)})
        true = oracle(dataset, day, frame["impression_id"])
        yield day, frame, scores if true is None else scores | {"oracle": true}, seconds


def folder_of(dataset: Dataset, config: Config) -> Path:
    """Where a model's runs lie: named by the code, the config and the table that make them.

    Code that differs from its commit has no name: its runs are removed first.
    """
    code = git_sha("model", "spark_jobs", "cuda_ext")
    makes = f"{code} {config.to_json()} {locations.table(dataset.name, 'samples')}"
    folder = locations.var() / "results" / hashlib.sha256(makes.encode()).hexdigest()[:16]
    if not re.fullmatch(r"[0-9a-f]{40}", code):
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def measured(dataset: Dataset, days: Sequence[tuple[str, Scores, dict[str, Scores], float]]) -> Any:
    """Metrics of what `measure` gave, by name: of each day, and pooled over the days."""
    frame = {key: np.concatenate([part[key] for _, part, _, _ in days]) for key in days[0][1]}
    metrics = {}
    for name in days[0][2]:
        parts = [scores[name] for _, _, scores, _ in days]
        pooled = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        metrics[name] = {
            "days": {day: metrics_of(dataset, part, scores[name]) for day, part, scores, _ in days},
            "pooled": metrics_of(dataset, frame, pooled),
        }
    return metrics


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of every pooled metric."""
    pooled = {}
    for name in seeds[0]["pooled"]:
        values = [seed["pooled"][name] for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        pooled[name] = {"mean": statistics.fmean(values), "stdev": spread}
    return pooled


def table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table: models with their spread over seeds, then the baselines."""
    tasks = ("ctr", "ctcvr")
    models = report["models"]
    first = next(iter(models.values()))
    kinds = ["gauc", *(["gauc_request"] if "ctr_gauc_request" in first["pooled"] else []), "auc", "log_loss"]
    counted = " / ".join(f"{first['pooled'][f'{task}_gauc_users']['mean']:,.0f}" for task in tasks)
    seeds = ", ".join(str(seed["seed"]) for seed in first["seeds"])
    lines = [
        f"{report['dataset']}, {' and '.join(report['days'])}, seeds {seeds}; CTR / CTCVR, users counted in "
        f"GAUC: {counted}",
        "",
        f"| | {' | '.join(kind.replace('_', ' ') for kind in kinds)} |",
        f"|---|{'---|' * len(kinds)}",
    ]
    for name, model in models.items():
        cells = [[model["pooled"][f"{task}_{kind}"] for task in tasks] for kind in kinds]
        shown = [" / ".join(f"{v['mean']:.4f} +-{v['stdev']:.4f}" for v in cell) for cell in cells]
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    for name, baseline in report["baselines"].items():
        cells = [[baseline["pooled"][f"{task}_{kind}"] for task in tasks] for kind in kinds]
        lines.append(f"| {name} | {' | '.join(' / '.join(f'{v:.4f}' for v in cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures models; see `command.run` for the exit codes."""
    parser = command.parser("model.results", __doc__)
    command.add_dataset(parser, required=False)
    command.add_day(
        parser, "--days", required=False, nargs="+", default=[], help="consecutive days to score, YYYY-MM-DD"
    )
    parser.add_argument("--models", nargs="+", default=list(_DEFAULT), help="preset[,train.field=value]...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<dataset>.json")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/model.md")
    given = " ".join(argv if argv is not None else sys.argv[1:])

    def body(arguments: argparse.Namespace) -> Mapping[str, Any] | None:
        if arguments.table:
            sys.stdout.write(tables())
            return None
        if arguments.dataset is None or not arguments.days:
            raise UsageError("give --dataset and --days: without them there is nothing to score")
        return _measured_report(arguments, f"python -m model.results {given}")

    return command.run(parser, body, argv)


def _measured_report(arguments: argparse.Namespace, given: str) -> Mapping[str, Any]:
    dataset = arguments.dataset
    try:
        models = {model: config_of(model) for model in arguments.models}
    except ValueError as error:
        raise UsageError(str(error)) from error
    out = arguments.out or FOLDER / f"{dataset.name}.json"
    about = {"command": given, **_versions()}
    report = _run(dataset, models, sorted(arguments.days), arguments.seeds, device(), about, out)
    means = {
        name: {key: round(value["mean"], 4) for key, value in model["pooled"].items()}
        for name, model in report["models"].items()
    }
    return {"out": str(out), **means}


def tables() -> str:
    """The tables of `docs/model.md`: one for each file of `FILES`."""
    return "\n".join(table(json.loads((FOLDER / f"{name}.json").read_text())) for name in FILES)


def _run(
    dataset: Dataset,
    models: Mapping[str, Config],
    days: Sequence[str],
    seeds: Sequence[int],
    device: torch.device,
    about: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Measures all models and seeds; the report is written after each, so that a stop loses one at most."""
    start = time.monotonic()
    report: dict[str, Any] = {**about, "dataset": dataset.name, "days": days, "models": {}, "baselines": {}}
    for name, config in models.items():
        done: list[dict[str, Any]] = []
        for seed in seeds:
            seeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
            parts = list(measure(dataset, seeded, days, device, folder_of(dataset, seeded)))
            measures = measured(dataset, parts)
            train_seconds = sum(part[3] for part in parts)
            done.append({"seed": seed, **measures.pop("model"), "train_seconds": train_seconds})
            report["models"][name] = {
                "config": dataclasses.asdict(config), "seeds": done, "pooled": summary(done)
            }  # fmt: skip
            report["baselines"] = measures
            report["candidates"] = sum(len(frame["user_id"]) for _, frame, _, _ in parts)
            report["seconds"] = round(time.monotonic() - start, 1)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(report, indent=1, sort_keys=True) + "\n")
            pooled = done[-1]["pooled"]
            logger.info("%s seed %d: %.4f / %.4f", name, seed, pooled["ctr_gauc"], pooled["ctcvr_gauc"])
    return report


def _versions() -> dict[str, Any]:
    names = ("torch", "torchrec", installed_fbgemm(), "deltalake")
    return {
        "commit": git_sha("model", "spark_jobs", "cuda_ext"),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


if __name__ == "__main__":
    sys.exit(main())
