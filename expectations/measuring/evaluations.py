"""Measuring an evaluation: its JSON against the score files beside it. No Spark: it is one run's folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from expectations.rules.evaluation import DEFINED, LABELS, METRICS, RANKERS, SCORES
from expectations.rules.sql import LEVELS
from model.judging.metrics import auc
from model.judging.records import EVALUATION, newest, scores_of
from model.runs.store import run_path
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Dataset
from spark_jobs.lake import verdicts

Array = npt.NDArray[Any]
_ROW = ("user_id", "window_start_ms", "impression_id", *LABELS.values())


class EvaluationUnavailableError(CommandError):
    """There is no evaluation, or it is damaged; the message names the file and the remedy."""


def inspect_evaluation(
    dataset: Dataset, preset: str, ds: str
) -> tuple[dict[str, Any], dict[str, str], frozenset[str], int, str]:
    """Measures the evaluation of a run.

    Args:
        dataset: The dataset.
        preset: The run's preset.
        ds: The run's day.

    Returns:
        Facts, details of facts in words, what there is to compare with (keys of `present`), the version of
        the samples that were scored, and the digest of the evaluation's file.

    Raises:
        EvaluationUnavailableError: The evaluation or a score file is missing or damaged.
    """
    folder = run_path(dataset.name, preset, ds)
    path = newest(folder, EVALUATION)
    evaluation = _read_json(path, f"--dataset {dataset.name} --preset {preset} --ds {ds}")
    champion = evaluation["champion"] is not None
    oracle = evaluation["baselines"].get("oracle")
    frames = {
        ranker: _read_scores(scores_of(path, ranker))
        for ranker in RANKERS
        if ranker == "candidate" or champion
    }
    strange = [
        f"{name} is {evaluation[name]}"
        for name, value in (("dataset", dataset.name), ("preset", preset), ("ds", ds))
        if evaluation[name] != value
    ]
    facts: dict[str, Any] = {"rows": len(frames["candidate"]["user_id"]), "strange_fields": len(strange)}
    for ranker, frame in frames.items():
        facts |= _score_facts(ranker, frame, evaluation[ranker])
    for metric in METRICS:
        if champion:
            facts[f"{metric}_gain"] = _difference(evaluation["candidate"], evaluation["champion"], metric)
    for task in LABELS:
        facts[f"candidate_{task}_gauc_users"] = evaluation["candidate"].get(f"{task}_gauc_users")
        if oracle:
            facts[f"{task}_auc_over_oracle"] = _difference(evaluation["candidate"], oracle, f"{task}_auc")
    _, rows_of_users = np.unique(frames["candidate"]["user_id"], return_counts=True)
    facts["effective_users"] = float(rows_of_users.sum() ** 2 / max((rows_of_users**2).sum(), 1))
    if champion:
        facts["different_rows"] = _different_rows(frames["candidate"], frames["champion"])
    settled = champion and evaluation["champion"].get("days_seen", math.inf) >= dataset.limits.settled_days
    present = {"champion": champion, "settled champion": settled, "oracle": oracle}
    there = frozenset(name for name, is_there in present.items() if is_there)
    return (
        facts,
        {"strange_fields": "; ".join(strange)},
        there,
        int(evaluation["samples_version"]),
        verdicts.file_digest(path),
    )


def _score_facts(ranker: str, frame: dict[str, Array], metrics: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name in SCORES:
        score = frame[name].astype(np.float64)
        # NaN compares false with everything: what is not inside is outside.
        inside = score[(score > 0) & (score < 1)]
        facts[f"{ranker}_{name}_outside"] = len(score) - len(inside)
        # Between quantiles: a single score apart from all others is no spread.
        ends = np.quantile(inside, (LEVELS[0], LEVELS[-1])) if len(inside) else None
        facts[f"{ranker}_{name}_spread"] = None if ends is None else float(ends[1] - ends[0])
    undefined = [name for name in DEFINED if not _is_number(metrics.get(name))]
    facts[f"{ranker}_undefined"] = len(undefined)
    for metric in METRICS:
        facts[f"{ranker}_{metric}"] = metrics.get(metric)
    for task, label in LABELS.items():
        labels, score = frame[label], frame[f"{task}_live"].astype(np.float64)
        finite = score[np.isfinite(score)]
        weight = frame.get("weight", np.ones(len(score)))
        predicted = float((np.where(np.isfinite(score), score, 0.0) * weight).sum())
        facts[f"{ranker}_{task}_quantiles"] = np.quantile(finite, LEVELS).tolist() if len(finite) else None
        facts[f"{ranker}_{task}_copc"] = float((labels * weight).sum()) / predicted if predicted > 0 else None
        recount = auc(labels, score) if np.isfinite(score).all() else math.nan
        given = metrics.get(f"{task}_auc")
        facts[f"{ranker}_{task}_auc_difference"] = abs(given - recount) if _is_number(given) else None
    return facts


def _different_rows(one: dict[str, Array], other: dict[str, Array]) -> int:
    if len(one["user_id"]) != len(other["user_id"]):
        return abs(len(one["user_id"]) - len(other["user_id"]))
    differs = np.zeros(len(one["user_id"]), dtype=bool)
    for column in _ROW:
        differs |= one[column] != other[column]
    return int(differs.sum())


def _difference(one: dict[str, Any], other: dict[str, Any], metric: str) -> float | None:
    a, b = one.get(metric), other.get(metric)
    return float(a) - float(b) if _is_number(a) and _is_number(b) else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _read_json(path: Path, arguments: str) -> dict[str, Any]:
    remedy = f"run python -m model.evaluate {arguments}"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EvaluationUnavailableError(f"there is no evaluation at {path}; {remedy}") from error
    except ValueError as error:
        raise EvaluationUnavailableError(f"{path} is damaged ({error}); {remedy} again") from error
    needed = ("dataset", "preset", "ds", "samples_version", "candidate", "champion", "baselines")
    missing = [name for name in needed if name not in evaluation]
    if missing:
        raise EvaluationUnavailableError(f"{path} has no {', '.join(missing)}; {remedy} again")
    return dict(evaluation)


def _read_scores(path: Path) -> dict[str, Array]:
    try:
        weight = {"weight"} & set(pq.read_schema(path).names)  # where candidates are a sample of more
        table = pq.read_table(path, columns=[*_ROW, *SCORES, *weight])
    except (OSError, ValueError) as error:
        raise EvaluationUnavailableError(
            f"{path} cannot be read ({error}); run model.evaluate again"
        ) from error
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
