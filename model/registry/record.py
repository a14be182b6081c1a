"""All that MLflow shows of a run: config, data and code versions, metrics by step and by day, plots, tables.

Written from the run's folder, so that it can be written again with the same result.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from model.config.run import Config
from model.data.reader import SamplesTable
from model.judging.records import EVALUATION, newest, scores_of
from model.registry import plots, tracking
from model.registry.lineage import LINEAGE, as_ranges
from model.registry.versions import DIGEST, Version
from model.runs.files import RunError
from model.runs.store import Run
from spark_jobs.contract.features import Dataset
from spark_jobs.lake import verdicts

logger = logging.getLogger(__name__)

HEADLINES = tuple(f"{task}_{kind}" for task in ("ctr", "ctcvr") for kind in ("auc", "gauc"))
_MEAN_STEPS = 20  # steps that one point of the loss curve is the mean of
_LENGTHS = {"static": "static_time_ms", "realtime": "realtime_time_ms", "candidate": "candidate_time_ms"}


def read_evaluation(run: Run) -> dict[str, Any]:
    """What `model.evaluate` wrote beside the run, last.

    Raises:
        RunError: It is missing, no JSON, or of another model than the run holds now.
    """
    path = newest(run.path, EVALUATION)
    again = (
        f"evaluate it: python -m model.evaluate --dataset {run.record['dataset']} "
        f"--preset {run.record['preset']} --ds {run.ds}"
    )
    try:
        evaluation: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"there is no {path}; {again}") from None
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); {again}") from error
    judged = (evaluation.get("candidate") or {}).get("digest")
    if judged != run.digest:
        raise RunError(f"{path} is of the digest {judged}, the run has {run.digest}; {again}")
    return evaluation


def require_passed(dataset: Dataset, run: Run) -> None:
    """Refuses a run whose evaluation, as it is now, has not passed its gate.

    Raises:
        NotPassedError: It failed or was not judged.
    """
    preset = str(run.record["preset"])
    allowed = verdicts.require_evaluation(dataset.name, preset, run.ds, newest(run.path, EVALUATION))
    if allowed:
        logger.warning("the evaluation of %s did not pass its gate and is used: %s", run.path, allowed)


def finite(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The metrics that have a value: numbers that are finite, named with a prefix."""
    return {
        f"{prefix}{name}": float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def tags_of(run: Run) -> dict[str, str]:
    """What run and version are tagged with: data, the commit that trained it, and the digest."""
    return _tags(run.record, run.digest)


def _tags(record: Mapping[str, Any], digest: str) -> dict[str, str]:
    return {
        "dataset": str(record["dataset"]),
        "preset": str(record["preset"]),
        "ds": str(record["ds"]),
        "samples_version": str(record["samples_version"]),
        "seen_days": as_ranges(record["seen_days"]),
        "git_sha": str(record["git_sha"]),
        DIGEST: digest,
    }


def start(run: Run) -> str:
    """The run's MLflow run, with params and tags."""
    _, config = run.config()
    return _start(config, run.record, tags_of(run))


def _start(config: Config, record: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    params = {part: asdict(config)[part] for part in ("model", "train")}
    params["world_size"] = record["world_size"]
    run_id = tracking.start_run(str(record["dataset"]), config.preset, str(record["ds"]), params, tags)
    tracking.log_json(run_id, LINEAGE, {"links": record["lineage"]})
    return run_id


def log(
    dataset: Dataset,
    run: Run,
    evaluation: Mapping[str, Any],
    run_id: str,
    model_id: str,
    others: Sequence[Version],
) -> None:
    """Logs metrics, plots, tables and environment of a run to its MLflow run, and ends it.

    Args:
        dataset: Of the run.
        run: The run.
        evaluation: Its evaluation.
        run_id: Its MLflow run.
        model_id: Its logged model.
        others: Registered versions, for GAUC by day.
    """
    record = run.record
    tracking.log_metrics(run_id, finite(evaluation["candidate"]), model_id=model_id)
    baselines = {**(evaluation.get("baselines") or {}), "champion": evaluation.get("champion") or {}}
    for name, metrics in baselines.items():
        headlines = {key: metrics.get(key) for key in HEADLINES}
        tracking.log_metrics(run_id, finite(headlines, f"{name}_"))
    by_day = sorted((record.get("loss_by_day") or {}).items())
    tracking.log_history(run_id, {"loss_by_day": [(i, loss) for i, (_, loss) in enumerate(by_day)]})
    tracking.log_figures(run_id, figures(dataset, run, evaluation, others))
    tracking.log_json(run_id, "evaluation", evaluation)
    tracking.log_json(run_id, "environment", environment())
    tracking.log_table(run_id, "segments", segments_table(evaluation))
    tracking.log_table(run_id, "days", [
        {"ds": ds, "samples_version": version, "loss": (record.get("loss_by_day") or {}).get(ds, "")}
        for ds, version in sorted(run.seen_days.items())
    ])  # fmt: skip
    tracking.finish_run(run_id)


def figures(
    dataset: Dataset, run: Run, evaluation: Mapping[str, Any], others: Sequence[Version]
) -> dict[str, Any]:
    """The figures by name."""
    title = f"{dataset.name}, {run.record['preset']} of {run.ds}"
    scores = pq.read_table(scores_of(newest(run.path, EVALUATION), "candidate"))
    columns = {name: scores.column(name).to_numpy() for name in
               ("label_click", "label_conversion", "ctr_live", "ctcvr_live")}  # fmt: skip
    champion = (evaluation.get("champion") or {}).get("version")
    against = f" against version {champion}" if champion else ""
    made = {
        "gauc_by_day": plots.gauc_by_day(_days(run, evaluation, others), title),
        "calibration": plots.calibration(
            {"ctr": columns["label_click"], "ctcvr": columns["label_conversion"]},
            {"ctr": columns["ctr_live"], "ctcvr": columns["ctcvr_live"]},
            title,
            scores.column("weight").to_numpy() if "weight" in scores.column_names else None,
        ),
        "gauc_by_segment": plots.gauc_by_segment(evaluation["segments"], title + against),
        "sequence_lengths": plots.sequence_lengths(
            _lengths(dataset, run.ds, int(evaluation["samples_version"])), f"{dataset.name} {run.ds}"
        ),
    }
    if run.record.get("losses"):
        made["loss"] = plots.loss([(name, value) for name, value in run.record["losses"]], title)
    return made


def _days(run: Run, evaluation: Mapping[str, Any], others: Sequence[Version]) -> list[dict[str, Any]]:
    """The versions of the run's preset by day, and the run itself."""
    days = [
        {"ds": other.ds, "promoted": other.tags.get("decision") == "promoted",
         **{name: other.tags.get(name) for name in HEADLINES}}
        for other in others if other.preset == run.record["preset"] and other.digest != run.digest
    ]  # fmt: skip
    own = {"ds": run.ds, "promoted": False, **finite(evaluation["candidate"])}
    return sorted([*days, own], key=lambda day: str(day["ds"]))


def _lengths(dataset: Dataset, ds: str, version: int) -> dict[str, Any]:
    table = SamplesTable(dataset, version)
    parts: dict[str, list[Any]] = {group: [] for group in _LENGTHS}
    for chunk in table.chunks(ds, list(_LENGTHS.values())):
        for group, column in _LENGTHS.items():
            parts[group] += [np.diff(piece.offsets.to_numpy()) for piece in chunk.column(column).chunks]
    return {group: np.concatenate(lengths) for group, lengths in parts.items()}


def segments_table(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a segment and contender, with all metrics."""
    rows = [
        {"segment": segment, "of": who, **metrics}
        for who, segments in (evaluation.get("segments") or {}).items()
        for segment, metrics in segments.items()
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in keys} for row in rows]


def environment() -> dict[str, Any]:
    """Python, machine and the versions of all installed distributions."""
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "distributions": dict(sorted(installed.items())),
    }


def log_training(config: Config, record: dict[str, Any], digest: str) -> str:
    """Logs the finished training to MLflow: config, lineage, the loss by step in one call."""
    run_id = _start(config, record, _tags(record, digest))
    first = record["num_steps"] - len(record["losses"])
    losses = [loss for _, loss in record["losses"]]
    means = [
        (first + place, statistics.fmean(losses[place : place + _MEAN_STEPS]))
        for place in range(0, len(losses), _MEAN_STEPS)
    ]
    tracking.log_history(run_id, {"train_loss": means})
    return run_id
