"""MLflow runs: one run for what was trained, the same one however often a command is run again.

A run is found by its tag `run_key` = `<preset>/<ds>/<digest>` in the experiment `mtgr-<dataset>`; metrics
that are already there are not logged twice, and a value that is not finite is refused (MLflow would store
infinity as 1.8e308 and let it pass a threshold).
"""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.registry.store import TrackingError, artifacts_root, client, with_named_errors
from spark_jobs.contract import locations
from spark_jobs.contract.clock import parse_day
from spark_jobs.contract.datasets import dataset_named

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run

logger = logging.getLogger(__name__)

RUN_KEY = "run_key"
# What MLflow's UI opens as training runs; its other kind is for applications of language models.
KIND = {"mlflow.experimentKind": "custom_model_development"}
VIEW = "gauc"  # key of the shared view of the runs table
_NOTE, _VIEW = "mlflow.note.content", "mlflow.sharedViewState."
STATUSES = ("FINISHED", "FAILED", "KILLED")
_BATCH = 1000  # metrics that MLflow takes in one call
_LONGEST_TAG = 5000  # characters; what every store of MLflow takes for a tag of a run or a version


def experiment_name(dataset: str) -> str:
    """Name of a dataset's experiment, and of its registered model.

    Raises:
        ValueError: There is no such dataset.
    """
    return f"mtgr-{dataset_named(dataset).name}"


def experiment_id(dataset: str) -> str:
    """Id of the dataset's experiment, which is created when there is none."""
    from mlflow.exceptions import MlflowException

    name = experiment_name(dataset)
    experiment = client().get_experiment_by_name(name)
    if experiment is None:
        # A server names its own place; without one MLflow would take the working directory.
        local = not locations.tracking_uri().startswith("http")
        place = (artifacts_root() / name).as_uri() if local else None
        try:
            return str(client().create_experiment(name, artifact_location=place, tags=dict(KIND)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client().get_experiment_by_name(name)
    if experiment is None or experiment.lifecycle_stage != "active":
        raise TrackingError(f"the experiment {name!r} was deleted: restore it (MLflow UI) or `mlflow gc` it")
    return str(experiment.experiment_id)


@with_named_errors
def find_run(dataset: str, preset: str, ds: str, digest: str) -> Run | None:
    """The MLflow run of what was trained, or None."""
    runs = client().search_runs(
        [experiment_id(dataset)],
        filter_string=f"tags.{RUN_KEY} = '{_run_key(preset, ds, digest)}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


@with_named_errors
def start_run(dataset: str, preset: str, ds: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """The MLflow run for (dataset, preset, ds, digest): found when there is one, else created.

    Args:
        dataset: Name of the dataset.
        preset: Name of the preset.
        ds: Day the model is made for.
        params: What it was made with; nested mappings become dotted names.
        tags: `digest`, of config and weights, so that a rerun that made the same finds its run; further ones
            such as `samples_version`, `git_sha` and `seen_days` replace older values.

    Returns:
        The run's id.

    Raises:
        ValueError: The dataset is unknown, `digest` is missing, or a name holds other characters than
            letters, digits and `._-`.
        TrackingError: MLflow is not reachable or refuses.
    """
    from mlflow.entities import Param, RunTag

    digest = tags.get("digest", "")
    named = {"dataset": dataset, "preset": preset, "ds": ds, RUN_KEY: _run_key(preset, ds, digest)}
    wanted = bounded({**tags, **named})
    run = find_run(dataset, preset, ds, digest)
    if run is None:
        run = client().create_run(experiment_id(dataset), tags=wanted, run_name=f"{preset} {ds}")
        logger.info("MLflow run %s: %s of %s", run.info.run_id, preset, ds)
    run_id = str(run.info.run_id)
    if run.info.status != "RUNNING":
        client().update_run(run_id, status="RUNNING")
    client().log_batch(
        run_id,
        params=[Param(key, value) for key, value in flat(params).items() if key not in run.data.params],
        tags=[RunTag(key, str(value)) for key, value in wanted.items() if run.data.tags.get(key) != value],
    )
    return run_id


def bounded(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags, when every store takes them: SQLite takes any length, Postgres and a server do not.

    Raises:
        ValueError: One is too long; what has no bound belongs into an artifact.
    """
    for name, value in tags.items():
        if len(str(value)) > _LONGEST_TAG:
            raise ValueError(
                f"tag {name} has {len(str(value))} characters, tags take {_LONGEST_TAG}: it begins "
                f"{str(value)[:40]!r}; keep it as an artifact"
            )
    return dict(tags)


def _run_key(preset: str, ds: str, digest: str) -> str:
    parse_day(ds)
    for what, value in (("preset", preset), ("digest", digest)):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", value):
            raise ValueError(f"{what} {value!r}: use letters, digits and ._- only")
    return f"{preset}/{ds}/{digest}"


def flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one with dotted names, and values as texts."""
    names: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            names |= flat(value, f"{prefix}{key}.")
        else:
            names[f"{prefix}{key}"] = str(value)[:6000]
    return names


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
    """Logs metrics at a step; see `log_history`."""
    log_history(run_id, {name: [(step, value)] for name, value in values.items()}, model_id)


@with_named_errors
def log_history(
    run_id: str,
    histories: Mapping[str, Sequence[tuple[int, float]]],
    model_id: str | None = None,
    times: Mapping[int, int] | None = None,
) -> None:
    """Logs (step, value) of metrics; what is logged already is not logged again.

    Args:
        run_id: The run.
        histories: By metric name; a metric without a value (a GAUC that counts no user) is to be left out.
        model_id: Logged model that the metrics belong to, if any.
        times: By step, when it was, in milliseconds; by default now.

    Raises:
        ValueError: A value is NaN or infinite.
        TrackingError: MLflow is not reachable or refuses.
    """
    from mlflow.entities import Metric

    new: list[Metric] = []
    logged = client().get_run(run_id).data.metrics
    for name, history in histories.items():
        for step, value in history:
            if not math.isfinite(value):
                raise ValueError(f"metric {name} at step {step} is {value}: not logged; find out why it is")
        known: dict[int, tuple[float, int]] = {}
        for metric in client().get_metric_history(run_id, name) if name in logged else ():
            known[metric.step] = max(known.get(metric.step, (0.0, 0)), (metric.value, metric.timestamp),
                                     key=lambda pair: pair[1])  # fmt: skip
        for step, value in history:
            if step not in known or known[step][0] != value:
                # MLflow takes the latest time for the newest value of a step.
                at = (times or {}).get(step, int(time.time() * 1000))
                at = max(at, known.get(step, (0.0, 0))[1] + 1)
                new.append(Metric(name, float(value), at, step, model_id=model_id))
    for first in range(0, len(new), _BATCH):
        client().log_batch(run_id, metrics=new[first : first + _BATCH])


@with_named_errors
def log_json(run_id: str, name: str, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Logs a value as `<name>.json`, replacing an older one."""
    client().log_dict(run_id, value, f"{name}.json")


@with_named_errors
def log_table(run_id: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Logs rows as `tables/<name>.csv`, replacing an older one; columns are the keys of the first row."""
    import csv

    with tempfile.TemporaryDirectory(prefix="mtgr-table-") as folder:
        path = Path(folder) / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
        client().log_artifact(run_id, str(path), "tables")


@with_named_errors
def log_inputs(run_id: str, inputs: Sequence[DatasetInput]) -> None:
    """Logs what a run has read; the same again changes nothing."""
    client().log_inputs(run_id, list(inputs))


@with_named_errors
def describe_run(run_id: str, text: str, tags: Mapping[str, str] | None = None) -> None:
    """Sets a run's description, Markdown, and further tags; what is too long is refused, as every tag is."""
    for name, value in bounded({**(tags or {}), _NOTE: text}).items():
        client().set_tag(run_id, name, value)


@with_named_errors
def describe_experiment(dataset: str, text: str, view: Mapping[str, Any]) -> None:
    """Sets an experiment's kind, description and the shared view of its runs table, where they differ."""
    experiment = client().get_experiment(experiment_id(dataset))
    wanted = {**KIND, _NOTE: text, f"{_VIEW}{VIEW}": json.dumps(view, sort_keys=True)}
    for name, value in bounded(wanted).items():
        if experiment.tags.get(name) != value:
            client().set_experiment_tag(experiment.experiment_id, name, value)


@with_named_errors
def log_text(run_id: str, name: str, text: str) -> None:
    """Logs a text as the artifact `name`, replacing an older one."""
    client().log_text(run_id, text, name)


@with_named_errors
def finish_run(run_id: str, status: str = "FINISHED") -> None:
    """Ends a run.

    Raises:
        ValueError: `status` is none of `STATUSES`.
    """
    if status not in STATUSES:
        raise ValueError(f"status {status!r}; use one of {', '.join(STATUSES)}")
    client().set_terminated(run_id, status)
