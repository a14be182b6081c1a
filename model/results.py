"""Measures a preset as daily runs would: `python -m model.results --dataset kuairand --days D [D ...]`.

For each seed: a run is trained on all days before the first day, scored on it, continued over that day,
scored on the next, and so on; the samples table must hold the days. Writes `docs/results/<dataset>.json`:
metrics by seed and day, pooled over the days with (user, window, day) as GAUC's groups, the item baselines,
mean and standard deviation over seeds, versions. Runs and their tracking lie apart, in
`$MTGR_VAR/results`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from model.config import Config, preset_named
from model.evaluate import evaluate, metrics_of
from model.mlflow_store import TrackingError
from model.reader import SamplesUnavailableError
from model.registry import RegistryError
from model.runs import RunError, load_run, write_text
from model.scoring import SCORES
from model.settings import configure_logging, device_of
from model.train import train
from model.trainer import NonFiniteLossError
from spark_jobs import locations
from spark_jobs.contract import Dataset, parse_day
from spark_jobs.datasets import dataset_named

logger = logging.getLogger(__name__)

_KEYS = ("user_id", "window_start_ms", "request_id", "label_click", "label_conversion")
_ROOT = Path(__file__).resolve().parents[1]


def measure(dataset: Dataset, config: Config, days: Sequence[str], device: torch.device) -> dict[str, Any]:
    """Trains and scores one seed over consecutive days.

    Returns:
        `days`: evaluation by day, `pooled`: metrics over all days, `train_seconds`.

    Raises:
        RunError: There are no samples before the first day.
        SamplesUnavailableError: A day has no samples.
    """
    folder = locations.var() / "results" / f"{config.preset}-seed{config.train.seed}"
    os.environ["MTGR_RUNS"] = str(folder / "runs")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    by_day: dict[str, Any] = {}
    parts: list[dict[str, npt.NDArray[Any]]] = []
    seconds = 0.0
    for day in days:
        seconds += float(train(dataset, config, day, device)["seconds"])
        run = load_run(dataset.name, config.preset, day)
        evaluation = evaluate(dataset, run, str(device))
        by_day[day] = {"model": evaluation["candidate"], **evaluation["baselines"]}
        table = pq.read_table(run.path / "scores_candidate.parquet")
        parts.append({name: table.column(name).to_numpy() for name in (*_KEYS, *SCORES)})
        logger.info("seed %d, %s: ctr_gauc %.4f", config.train.seed, day, evaluation["candidate"]["ctr_gauc"])
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {
        "seed": config.train.seed,
        "days": by_day,
        "pooled": metrics_of(dataset, pooled, pooled),
        "train_seconds": round(seconds, 1),
    }


def summary(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of every pooled metric."""
    found = {}
    for name in results[0]["pooled"]:
        values = [result["pooled"][name] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": statistics.fmean(values), "stdev": spread}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints the pooled means as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m model.results", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--days", required=True, nargs="+", help="consecutive days to score, YYYY-MM-DD")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, help="default: docs/results/<dataset>.json")
    arguments = parser.parse_args(argv)
    configure_logging()
    try:
        dataset, config = dataset_named(arguments.dataset), preset_named(arguments.preset)
        days = sorted(arguments.days, key=parse_day)
        device = device_of(os.environ.get("MTGR_DEVICE", "auto"))
    except ValueError as error:
        logger.error("%s", error)
        return 2
    start = time.monotonic()
    try:
        results = []
        for seed in arguments.seeds:
            seeded = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
            results.append(measure(dataset, seeded, days, device))
        report = {
            "command": f"python -m model.results {' '.join(argv if argv is not None else sys.argv[1:])}",
            "dataset": dataset.name,
            "config": dataclasses.asdict(config),
            "summary": summary(results),
            "seeds": results,
            "seconds": round(time.monotonic() - start, 1),
            **_versions(),
        }
        out = arguments.out or _ROOT / "docs" / "results" / f"{dataset.name}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(report, indent=1, sort_keys=True) + "\n")
    except (
        RunError,
        SamplesUnavailableError,
        NonFiniteLossError,
        RegistryError,
        TrackingError,
        OSError,
    ) as error:
        logger.error("%s", error)
        return 1
    means = {name: round(value["mean"], 4) for name, value in report["summary"].items()}
    sys.stdout.write(json.dumps({"out": str(out), **means}) + "\n")
    return 0


def _versions() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    names = ("torch", "torchrec", "fbgemm-gpu-cpu", "deltalake")
    return {
        "commit": commit or None,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


if __name__ == "__main__":
    sys.exit(main())
