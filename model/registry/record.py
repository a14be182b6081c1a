"""All that MLflow shows of a run: config, data and code versions, metrics by step and by day, pages, tables.

Written from the run's folder, so that it can be written again with the same result.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import platform
import re
import resource
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import torch

from model.config.run import Config
from model.judging.records import EVALUATION, newest
from model.registry import inputs, pages, tracking
from model.registry.lineage import LINEAGE, as_ranges
from model.registry.machine import Machine
from model.registry.versions import DIGEST
from model.reports.contenders import contenders, gauc_chart
from model.reports.records import history_of, series_of
from model.runs.files import RunError
from model.runs.store import Run
from spark_jobs.contract.clock import parse_day
from spark_jobs.contract.features import Dataset
from spark_jobs.lake import verdicts

logger = logging.getLogger(__name__)

HEADLINES = tuple(f"{task}_{kind}" for task in ("ctr", "ctcvr") for kind in ("auc", "gauc"))
_MEAN_STEPS = 20  # steps that one point of the loss curve is the mean of
_FIRST = {
    "model": ("architecture", "d_model", "max_static"),
    "train": ("passes", "batch_tokens", "dense_lr", "sparse_lr", "precision", "seed"),
}
_FIRST_METRICS = [f"{task}_{kind}" for task in ("ctcvr", "ctr") for kind in
                  ("gauc", "gauc_low", "gauc_high", "gauc_users", "auc", "copc", "log_loss")]  # fmt: skip


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
    known = asdict(config)
    first = {
        part: {key: known[part][key] for key in keys if key in known[part]} for part, keys in _FIRST.items()
    }
    # MLflow shows them in the order in which they came: what matters first, sizes of tables last.
    params = {**tracking.flat(first), **tracking.flat({part: _but_tables(known[part]) for part in first})}
    params |= {"world_size": record["world_size"], **tracking.flat({"model": known["model"]})}
    tags = {**tags, **_source(str(record["git_sha"]))}
    run_id = tracking.start_run(str(record["dataset"]), config.preset, str(record["ds"]), params, tags)
    tracking.log_json(run_id, LINEAGE, {"links": record["lineage"]})
    tracking.log_inputs(run_id, [inputs.trained_on(record)])
    return run_id


def _but_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "tables"}


def _source(code: str) -> dict[str, str]:
    """MLflow's own tags of what made a run: the command, the commit, and whether files differed."""
    commit = code.split(",")[-1]
    tags = {"mlflow.source.name": "model.train", "mlflow.source.type": "LOCAL"}
    if re.fullmatch(r"[0-9a-f]{40}(\+dirty)?", commit):
        tags["mlflow.source.git.commit"] = commit.removesuffix("+dirty")
        tags["mlflow.source.git.dirty"] = str(commit.endswith("+dirty"))
    return tags


def log(
    dataset: Dataset,
    run: Run,
    evaluation: Mapping[str, Any],
    run_id: str,
    model_id: str,
) -> None:
    """Logs metrics, pages, tables and environment of a run to its MLflow run, and ends it.

    Args:
        dataset: Of the run.
        run: The run.
        evaluation: Its evaluation.
        run_id: Its MLflow run.
        model_id: Its logged model.
    """
    record, preset = run.record, str(run.record["preset"])
    own = finite(evaluation["candidate"])
    first = {key: own.pop(key) for key in _FIRST_METRICS if key in own}
    tracking.log_metrics(run_id, {**first, **own}, model_id=model_id)
    baselines = {**(evaluation.get("baselines") or {}), "champion": evaluation.get("champion") or {}}
    for name, metrics in baselines.items():
        headlines = {key: metrics.get(key) for key in HEADLINES}
        tracking.log_metrics(run_id, finite(headlines, f"{name}_"))
    by_day = sorted((record.get("loss_by_day") or {}).items())
    tracking.log_history(run_id, {"loss_by_day": [(i, loss) for i, (_, loss) in enumerate(by_day)]})
    _log_by_day(dataset.name, preset, run, run_id)
    tracking.log_inputs(run_id, [inputs.judged_on(evaluation)])
    overview = gauc_chart(contenders(evaluation), "ctcvr", f"of {preset} on {run.ds}", row=17)
    tracking.log_text(run_id, pages.OVERVIEW, overview)
    experiment = tracking.experiment_id(dataset.name)
    tracking.describe_run(run_id, pages.run_page(experiment, run_id, evaluation, "", None))
    tracking.log_json(run_id, "evaluation", evaluation)
    tracking.log_json(run_id, "environment", environment())
    tracking.log_table(run_id, "segments", segments_table(evaluation))
    tracking.log_table(run_id, "days", [
        {"ds": ds, "samples_version": version, "loss": (record.get("loss_by_day") or {}).get(ds, "")}
        for ds, version in sorted(run.seen_days.items())
    ])  # fmt: skip
    tracking.finish_run(run_id)


def _log_by_day(dataset: str, preset: str, run: Run, run_id: str) -> None:
    """Logs GAUC by day of the preset and of those it was compared with: a section of charts for each task.

    Steps count days from the first one that the model has seen, so that they are the same in every run.
    """
    history = history_of(dataset, preset, run.ds)
    first = parse_day(min(run.seen_days, default=run.ds))
    steps = {day: (parse_day(day) - first).days for day, _ in history}
    series = {
        f"{metric}_by_day/{who}": [(steps[day], value) for day, value in points]
        for metric in ("ctcvr_gauc", "ctr_gauc")
        for who, points in series_of(history, metric).items()
    }
    midnights = {step: datetime.combine(parse_day(day), time.min, UTC) for day, step in steps.items()}
    times = {step: int(midnight.timestamp() * 1000) for step, midnight in midnights.items()}
    tracking.log_history(run_id, series, times=times)


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


def log_training(config: Config, record: dict[str, Any], digest: str, machine: Machine | None = None) -> str:
    """Logs the finished training to MLflow: config, lineage, the loss by step, what was measured."""
    run_id = _start(config, record, _tags(record, digest))
    first = record["num_steps"] - len(record["losses"])
    losses = [loss for _, loss in record["losses"]]
    means = [
        (first + place, statistics.fmean(losses[place : place + _MEAN_STEPS]))
        for place in range(0, len(losses), _MEAN_STEPS)
    ]
    used = {name: [(0, value)] for name, value in finite(_used(record)).items()}
    tracking.log_history(run_id, {"train_loss": means, **used})
    if machine is not None:
        curves, times = machine.curves()
        tracking.log_history(run_id, curves, times=times)
    return run_id


def _used(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a training took of the machine in all; memory is the most that the process had."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds, tokens = record.get("seconds"), record.get("tokens")
    values = {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "process_cpu_seconds": used.ru_utime + used.ru_stime,
        "process_memory_megabytes": _peak_kilobytes() / 1024,
    }
    if torch.cuda.is_available():
        values["gpu_memory_usage_megabytes"] = torch.cuda.max_memory_allocated() / 2**20
    return {f"system/{name}": value for name, value in values.items()}


def _peak_kilobytes() -> float:
    """The most memory that this process has had; `getrusage` counts its parent's, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
