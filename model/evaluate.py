"""Evaluates a day's candidate and the champion: `python -m model.evaluate --dataset foodlog --ds D`.

Both score the same rows, day `ds` of one version of the samples table, which neither was trained on. The
run's folder gets `evaluation.json` and `scores_candidate.parquet`, `scores_champion.parquet`.

No candidate of a group that GAUC compares may know a label that another does not: `*_gauc` compares frozen
scores within a user's window of the day, `*_gauc_request` live ones within a request; AUC, log loss and
calibration of live scores stand beside them, and so do item means and the simulator's oracle.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model import registry
from model.baselines import item_baselines, oracle
from model.metrics import group_ids, task_metrics
from model.mlflow_store import TrackingError
from model.reader import SamplesTable, SamplesUnavailableError
from model.registry import RegistryError
from model.runs import Run, RunError, load_run, write_text
from model.scoring import SCORES, Scorer, candidate_frame
from model.settings import configure_logging, device_of
from spark_jobs.contract import Dataset, parse_day
from spark_jobs.datasets import dataset_named
from spark_jobs.phases import reach

logger = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
Array = npt.NDArray[Any]
_FAILURES = (RunError, SamplesUnavailableError, RegistryError, TrackingError, ValueError, OSError)
_LABELS = {"ctr": "label_click", "ctcvr": "label_conversion"}
# Bands of static history by which users are told apart: name, least and greatest length.
_HISTORY_BANDS = (("none", 0, 0), ("1_to_9", 1, 9), ("10_to_49", 10, 49), ("50_and_more", 50, 1 << 30))


def metrics_of(dataset: Dataset, frame: dict[str, Array], scores: dict[str, Array]) -> dict[str, float]:
    """CTR and CTCVR metrics of scores beside the frame of `candidate_frame`."""
    user = group_ids(frame["user_id"])
    window = group_ids(frame["user_id"], frame["window_start_ms"])
    request = group_ids(frame["user_id"], frame["request_id"]) if dataset.has_requests else None
    metrics: dict[str, float] = {}
    for task, label in _LABELS.items():
        metrics |= task_metrics(
            task,
            frame[label],
            frozen=scores[f"{task}_frozen"],
            live=scores[f"{task}_live"],
            window=window,
            user=user,
            request=request,
        )
    return metrics


def evaluate(dataset: Dataset, run: Run, device: str = "cpu") -> dict[str, Any]:
    """Scores a run and the champion on the run's day and writes the evaluation beside the run.

    Args:
        dataset: Of the run.
        run: The candidate.
        device: Where to score.

    Returns:
        The content of `evaluation.json`.

    Raises:
        RunError: The candidate was trained on the day, or its files are damaged.
        SamplesUnavailableError: The day has no samples.
        ValueError: Rows or scores are broken.
    """
    start = time.monotonic()
    run.verify()
    if run.ds in run.seen_days:
        raise RunError(
            f"{run.path} was trained on {run.ds}; a day is evaluated by a run that has not seen it"
        )
    samples = SamplesTable(dataset)
    champion = registry.champion(dataset.name)
    candidate = Scorer.load(run.path, device)
    other = Scorer.load(champion.path, device) if champion is not None else None
    frame, scores = score_day(samples, run.ds, {"candidate": candidate, "champion": other})
    reach("evaluate:scored")
    for name, values in scores.items():
        if name in ("candidate", "champion"):
            _write_scores(run.path / f"scores_{name}.parquet", frame, values)
    true = oracle(dataset, run.ds, frame["impression_id"])
    if true is not None:
        scores["oracle"] = true
    metrics = {name: metrics_of(dataset, frame, values) for name, values in scores.items()}
    evaluation = {
        "dataset": dataset.name,
        "preset": run.record["preset"],
        "ds": run.ds,
        "samples_version": samples.version,
        "candidates": len(frame["user_id"]),
        "users": len(np.unique(frame["user_id"])),
        "click_rate": float(frame["label_click"].mean()),
        "conversion_rate": float(frame["label_conversion"].mean()),
        "candidate": {"digest": run.digest, **metrics.pop("candidate")},
        "champion": None
        if champion is None
        else {"version": champion.version, "digest": champion.digest, **metrics.pop("champion")},
        "baselines": metrics,
        "segments": {
            name: _segments(dataset, frame, scores[name])
            for name in ("candidate", "champion")
            if name in scores
        },
        "seconds": round(time.monotonic() - start, 1),
    }
    reach("evaluate:before_write")
    write_text(run.path / EVALUATION, json.dumps(_without_nan(evaluation), indent=2, sort_keys=True) + "\n")
    reach("evaluate:written")
    return evaluation


def score_day(
    samples: SamplesTable, ds: str, scorers: dict[str, Scorer | None]
) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """The frame of a day's candidates, and by name of scorer and baseline the scores beside it."""
    frames: list[dict[str, Array]] = []
    parts: dict[str, list[dict[str, Array]]] = {}
    for chunk in samples.chunks(ds):
        table = chunk.sort_by([("user_id", "ascending"), ("window_start_ms", "ascending")])
        frame = candidate_frame(table)
        counts = np.diff(table.column("candidate_time_ms").combine_chunks().offsets.to_numpy())
        lengths = np.diff(table.column("static_time_ms").combine_chunks().offsets.to_numpy())
        frames.append(frame | {"static_length": np.repeat(lengths, counts)})
        found = item_baselines(samples.dataset, table)
        found |= {name: scorer.score(table) for name, scorer in scorers.items() if scorer is not None}
        for name, scores in found.items():
            parts.setdefault(name, []).append(scores)
    return _joined(frames), {name: _joined(some) for name, some in parts.items()}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _segments(dataset: Dataset, frame: dict[str, Array], scores: dict[str, Array]) -> dict[str, Any]:
    """Metrics by length of the static history."""
    found = {}
    for name, least, greatest in _HISTORY_BANDS:
        rows = (frame["static_length"] >= least) & (frame["static_length"] <= greatest)
        if rows.any():
            part = {key: values[rows] for key, values in frame.items()}
            metrics = metrics_of(dataset, part, {key: values[rows] for key, values in scores.items()})
            found[f"history_{name}"] = {"candidates": int(rows.sum()), **metrics}
    return found


def _write_scores(path: Path, frame: dict[str, Array], scores: dict[str, Array]) -> None:
    columns = {name: values for name, values in frame.items() if name != "static_length"}
    table = pa.table({**columns, **{name: scores[name] for name in SCORES}})
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, neighbour)
    os.replace(neighbour, path)


def _without_nan(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have: a metric that is not defined."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; prints the evaluation's place and first metrics as one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--ds", required=True, help="the day to score, YYYY-MM-DD")
    parser.add_argument("--preset", default="tiny")
    arguments = parser.parse_args(argv)
    configure_logging()
    try:
        dataset = dataset_named(arguments.dataset)
        parse_day(arguments.ds)
        device = device_of(os.environ.get("MTGR_DEVICE", "auto"))
    except ValueError as error:
        logger.error("%s", error)
        return 2
    try:
        run = load_run(dataset.name, arguments.preset, arguments.ds)
        evaluation = _without_nan(evaluate(dataset, run, str(device)))
    except _FAILURES as error:
        logger.error("%s", error)
        return 1
    names = ("ctr_auc", "ctr_gauc", "ctcvr_auc", "ctcvr_gauc")
    result = {name: evaluation["candidate"][name] for name in names}
    result |= {key: evaluation[key] for key in ("dataset", "preset", "ds", "samples_version", "seconds")}
    if evaluation["champion"] is not None:
        result["champion"] = {name: evaluation["champion"][name] for name in ("version", *names)}
    sys.stdout.write(json.dumps(result | {"evaluation": str(run.path / EVALUATION)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
