"""The records of a day, gathered: verdicts of its gates, runs with their evaluations and decisions, commits.

All of it was written by the steps of the day, beside runs and gates and into the tables' logs; nothing is
measured again, but for the bins of calibration, which are means of the scores that the evaluation kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from model.judging.records import EVALUATION, PROMOTION, newest, path_of, scores_of
from model.reports.charts import Bin
from model.runs.store import Run, load_run
from spark_jobs.contract import locations
from spark_jobs.contract.clock import shift_day
from spark_jobs.lake import verdicts
from spark_jobs.lake.log import commits, exists, open_table

TASKS = {"ctr": "CTR", "ctcvr": "CTCVR"}
BASELINES = {"item_mean": "item mean", "oracle": "true probabilities"}
BEFORE = 14  # earlier days whose volumes and metrics stand beside the day's
_NUM_BINS = 10
_LABELS = {"ctr": "label_click", "ctcvr": "label_conversion"}
_PARTITIONS = {"events": "delivery_ds", "samples": "ds"}

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A run of the day with what was written beside it.

    Args:
        run: The run.
        evaluation: Its newest evaluation; None before it is evaluated.
        decision: The decision that counts; None before it is decided.
        verdict: Of the gate of its evaluation; None where there is none.
        bins: By task, observed rate against mean score, in bins of equal size.
    """

    run: Run
    evaluation: Mapping[str, Any] | None
    decision: Mapping[str, Any] | None
    verdict: Mapping[str, Any] | None
    bins: Mapping[str, Sequence[Bin]]

    @property
    def preset(self) -> str:
        """Its preset."""
        return str(self.run.record["preset"])


@dataclass(frozen=True, kw_only=True)
class Source:
    """A partition of a table, as the day used it.

    Args:
        table: URI of the table.
        partition: E.g. `ds=2026-03-01`.
        version: The commit that wrote it.
        stage: The command that made the commit.
        code: Git commit of that command.
        inputs: What it was made from.
        files: Its data files, relative to the table.
        counts: What the commit counted.
    """

    table: str
    partition: str
    version: int
    stage: str
    code: str
    inputs: Mapping[str, Any]
    files: Sequence[str]
    counts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Day:
    """All that is known of a day.

    Args:
        dataset: Name of the dataset.
        ds: The day.
        verdicts: By suite (`events`, `samples`) and day: of the day and of those before it.
        runs: Of the presets that have one.
        history: By preset: (day, evaluation) up to this day, ascending.
        sources: Where the day's rows lie.
    """

    dataset: str
    ds: str
    verdicts: Mapping[str, Mapping[str, Mapping[str, Any]]]
    runs: Sequence[Judged]
    history: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
    sources: Sequence[Source]


def read_day(dataset: str, ds: str) -> Day:
    """Gathers the records of a day.

    Raises:
        RunError: A run's record is damaged.
        ValueError: A verdict or an evaluation is no JSON; the message names the file.
        LakeError: A table's log is damaged.
    """
    days = [shift_day(ds, -back) for back in range(BEFORE, -1, -1)]
    judged = {}
    for suite in ("events", "samples"):
        read = {day: verdicts.read(verdicts.path_of(dataset, suite, day)) for day in days}
        judged[suite] = {day: verdict for day, verdict in read.items() if verdict is not None}
    runs = [_judged(load_run(dataset, preset, ds)) for preset in presets_of(dataset, ds)]
    return Day(
        dataset=dataset,
        ds=ds,
        verdicts=judged,
        runs=runs,
        history={one.preset: history_of(dataset, one.preset, ds) for one in runs},
        sources=[source for suite in _PARTITIONS if (source := _source(dataset, suite, ds)) is not None],
    )


def presets_of(dataset: str, ds: str) -> list[str]:
    """Presets that have a complete run of the day, ascending."""
    folder = locations.runs() / dataset
    return sorted(path.parent.parent.name for path in folder.glob(f"*/{ds}/train.json"))


def history_of(dataset: str, preset: str, ds: str) -> list[tuple[str, dict[str, Any]]]:
    """(day, newest evaluation) of a preset's runs, from `BEFORE` days before a day up to it.

    Raises:
        ValueError: One is no JSON; the message names it.
    """
    folder = locations.runs() / dataset / preset
    days = [shift_day(ds, -back) for back in range(BEFORE, -1, -1)]
    read = [(day, read_json(newest(folder / day, EVALUATION))) for day in days]
    return [(day, evaluation) for day, evaluation in read if evaluation is not None]


def series_of(
    history: Sequence[tuple[str, Mapping[str, Any]]], metric: str
) -> dict[str, list[tuple[str, float]]]:
    """A metric by day of the candidate and of who it was compared with, champion and baselines."""
    series: dict[str, list[tuple[str, float]]] = {}
    for day, evaluation in history:
        baselines = evaluation.get("baselines") or {}
        contenders = {who: evaluation.get(who) for who in ("candidate", "champion")} | {
            who: baselines.get(who) for who in BASELINES
        }
        for who, metrics in contenders.items():
            value = (metrics or {}).get(metric)
            if value is not None:
                series.setdefault(who, []).append((day, float(value)))
    return series


def read_json(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none.

    Raises:
        ValueError: It is no JSON; the message names it.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): run the step that wrote it again") from error
    return record


def _judged(run: Run) -> Judged:
    path = newest(run.path, EVALUATION)
    evaluation = read_json(path)
    preset = str(run.record["preset"])
    return Judged(
        run=run,
        evaluation=evaluation,
        decision=read_json(path_of(run.path, PROMOTION)),
        verdict=verdicts.read(verdicts.path_of(str(run.record["dataset"]), "evaluation", run.ds, preset)),
        bins={} if evaluation is None else _bins(scores_of(path, "candidate")),
    )


def _bins(scores: Path) -> dict[str, list[Bin]]:
    if not scores.exists():
        return {}
    table = pq.read_table(scores)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return {
        task: bins_of(columns[_LABELS[task]], columns[f"{task}_live"], columns.get("weight"))
        for task in TASKS
    }


def bins_of(labels: Array, scores: Array, weight: Array | None = None) -> list[Bin]:
    """Observed rate and mean score in bins that hold equally many candidates.

    Args:
        labels: 0 or 1, `[N]`.
        scores: Probabilities, `[N]`.
        weight: How many candidates each stands for, `[N]`; one each by default.
    """
    order = np.argsort(scores, kind="stable")
    bins = []
    for part in np.array_split(order, _NUM_BINS):
        if not len(part):
            continue
        of = None if weight is None else weight[part]
        rate = float(np.average(labels[part], weights=of))
        error = 1.96 * float(np.sqrt(max(rate * (1 - rate), 1e-9) / len(part)))
        bins.append(
            Bin(score=float(np.average(scores[part], weights=of)), rate=rate, error=error, rows=len(part))
        )
    return bins


def _source(dataset: str, table: str, ds: str) -> Source | None:
    uri = locations.table(dataset, table)
    column = _PARTITIONS[table]
    if not exists(uri):
        return None
    partition = f"{column}={ds}"
    commit = next((one for one in commits(uri) if one.metadata.get("partition") == partition), None)
    if commit is None:
        return None
    actions = open_table(uri).get_add_actions(flatten=True)
    paths, values = (actions[name].to_pylist() for name in ("path", f"partition.{column}"))
    return Source(
        table=uri,
        partition=partition,
        version=commit.version,
        stage=str(commit.metadata.get("stage", "")),
        code=str(commit.metadata.get("git_sha", "unknown")),
        inputs=commit.metadata.get("inputs", {}),
        files=sorted(path for path, value in zip(paths, values, strict=True) if str(value) == ds),
        counts=commit.metadata.get("counts", {}),
    )
