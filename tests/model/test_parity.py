"""The parity gate: what passes in which precision, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from model.data.synthetic import random_samples
from model.judging.scoring import SCORES
from model.serving.golden import Golden, requests_of
from model.serving.parity import parity, told
from spark_jobs.contract.foodlog import FOODLOG


class Moved:
    """A scorer whose scores are those of `golden`, moved by what a function of scores and labels gives."""

    dataset = FOODLOG

    def __init__(self, golden: Golden, move: Any) -> None:
        label = golden.rows.column("label_click").combine_chunks().flatten().to_numpy()
        moved = {name: values + move(values, label) for name, values in golden.scores.items()}
        self.parts = {}
        for request, end in enumerate(golden.counts.cumsum()):
            key = golden.rows.column("candidate_impression_id")[request].as_py()[0], request
            self.parts[key[0], golden.rows.column("user_id")[request].as_py()] = {
                name: values[end - golden.counts[request] : end] for name, values in moved.items()
            }

    def score(self, rows: pa.Table) -> dict[str, Any]:
        keys = [(row["candidate_impression_id"][0], row["user_id"]) for row in rows.to_pylist()]
        return {name: np.concatenate([self.parts[key][name] for key in keys]) for name in SCORES}


@pytest.fixture(scope="module")
def golden() -> Golden:
    windows = random_samples(FOODLOG, 40, seed=4, max_candidates=12)
    rows, _ = requests_of(windows)
    label = rows.column("label_click").combine_chunks().flatten().to_numpy()
    noise = np.random.default_rng(0).normal(size=(4, len(label)))
    scores = (0.1 + 0.03 * label + 0.03 * noise).clip(0.01, 0.9).astype(np.float32)
    return Golden(rows=rows, scores=dict(zip(SCORES, scores, strict=True)), source="made")


def reported(golden: Golden, precision: str, move: Any) -> dict[str, Any]:
    scorer: Any = Moved(golden, move)
    return parity(golden, scorer, precision)


def rounded(values: Any, label: Any) -> Any:
    return np.random.default_rng(1).uniform(-2e-3, 2e-3, len(values)).astype(np.float32)


def test_rounding_passes_in_half_precision_and_not_in_float32(golden: Golden) -> None:
    assert reported(golden, "float32", lambda values, _: 1e-6 * values)["passed"]
    report = reported(golden, "bfloat16", rounded)
    assert report["metrics_max"] > report["metrics_tolerance"]  # candidates have changed places
    assert report["beyond"] == []
    assert report["passed"]
    report = reported(golden, "float32", rounded)
    assert not report["passed"]
    assert "ctr_auc" in report["beyond"]


def test_a_loss_of_auc_within_the_tolerance_of_scores_is_refused(golden: Golden) -> None:
    """Each score is near enough, and all clicked ones are a little too low."""
    report = reported(golden, "bfloat16", lambda _, label: np.float32(-5e-3) * label.astype(np.float32))
    assert report["max"] < report["tolerance"]
    assert not report["passed"]
    assert {"ctr_auc", "ctr_gauc"} <= set(report["beyond"])
    assert "ctr_auc" in told(report)


def test_a_single_score_beyond_the_tolerance_is_named(golden: Golden) -> None:
    def one(values: Any, label: Any) -> Any:
        moved = np.zeros_like(values)
        moved[17] = 0.02
        return moved

    report = reported(golden, "bfloat16", one)
    assert not report["passed"]
    ends = golden.counts.cumsum()
    assert report["worst"]["request"] == int(np.searchsorted(ends, 17, "right"))
    assert report["worst"]["difference"] == pytest.approx(0.02, rel=1e-3)
