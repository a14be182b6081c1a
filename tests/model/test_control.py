"""The control: a trained ranker that knows nothing of items must not profit from labels that it can see.

Users differ in how often they click, so that what a user did a moment ago says how likely the next click is:
the ranker learns that and its AUC is right to rise. Within a user's window, where all clicks are equally
likely, ranking by it is worth nothing, and yet the AUC of live scores lies far from one half there, because
a candidate's own label decides what the others know. The GAUCs that are reported must lie at one half.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.config.presets import tiny
from model.data.encoder import SampleEncoder, arrow_schema
from model.data.steps import Step
from model.judging.evaluation import metrics_of
from model.judging.metrics import group_auc, group_ids
from model.judging.scoring import Scorer, candidate_frame
from model.rankers.protocol import build_ranker
from model.training.ranks import process_group
from model.training.step import Trainer
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.test_training import saved

KNOWN = ("user_id", "item_id", "action", "user_clicks_today", "user_impressions_today")
CONTROL = dataclasses.replace(
    FOODLOG, features=tuple(feature for feature in FOODLOG.features if feature.name in KNOWN)
)
START = FOODLOG.day_start_ms("2026-03-02")


def a_row(user: int, rng: np.random.Generator) -> dict[str, Any]:
    """A user's window: two requests of two dishes, clicked at the user's own rate."""
    clicks = (rng.random(4) < (0.15 if user % 2 else 0.85)).astype(int)
    before = int(clicks[:2].sum())
    times = [START + minute * 60_000 for minute in (10, 10, 70, 70)]
    visible = [0, 0, before, before]
    return {
        "user_id": user,
        "ds": "2026-03-02",
        "window_start_ms": START,
        "window_end_ms": START + 86_400_000,
        "profile_user_id": user,
        "static_time_ms": [],
        "static_item_id": [],
        "static_action": [],
        "realtime_time_ms": [times[0] + 60_000] * before,
        "realtime_visible": [0] * before,
        "realtime_item_id": [0] * before,  # an item that is always the same tells nothing
        "realtime_action": [1] * before,
        "candidate_item_id": [0] * 4,
        "candidate_time_ms": times,
        "candidate_visible": visible,
        "candidate_request_id": [f"{user}-{place // 2}" for place in range(4)],
        "candidate_impression_id": [f"{user}-{place}" for place in range(4)],
        "candidate_user_clicks_today": visible,
        "candidate_user_impressions_today": [0, 0, 2, 2],
        "label_click": clicks.tolist(),
        "label_conversion": (clicks * rng.integers(0, 2, 4)).tolist(),
    }


def samples(first_user: int, num_rows: int, rng: np.random.Generator) -> pa.Table:
    rows = [a_row(first_user + number, rng) for number in range(num_rows)]
    return pa.Table.from_pylist(rows, schema=arrow_schema(CONTROL))


def test_a_ranker_without_items_gains_nothing_from_labels_that_it_sees(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    rng = np.random.default_rng(3)
    base = tiny()
    config = dataclasses.replace(base, train=dataclasses.replace(base.train, dense_lr=5e-3))
    with process_group(torch.device("cpu")):
        trainer = Trainer(CONTROL, config, torch.device("cpu"))
        encoder = SampleEncoder(CONTROL)
        for number in range(30):
            batch = encoder.encode(samples(400 * number, 400, rng))
            if number == 0:
                trainer.scaler.fit(batch)
            hashes = torch.from_numpy(rng.random(400))
            trainer.step(Step(name=f"{number}", batch=batch, num_candidates=1600, weight=1600.0, num_tokens=0,
                              row_hash=hashes))  # fmt: skip
        published = trainer.published(saved(trainer, tmp_path / "checkpoint"))
    ranker = build_ranker(CONTROL, config.model, config.train.seed)
    ranker.load_state_dict(published)
    table = samples(1_000_000, 1000, rng)
    frame, scores = candidate_frame(table), Scorer(CONTROL, config, ranker).score(table)
    metrics = metrics_of(CONTROL, frame, scores)
    window = group_ids(frame["user_id"], frame["window_start_ms"])
    leaked = group_auc(window, frame["label_click"], scores["ctr_live"]).gauc
    assert metrics["ctr_auc"] > metrics["ctr_auc_frozen"] + 0.1  # it has learned what today's clicks say
    assert abs(leaked - 0.5) > 0.1  # and that would have distorted a GAUC of live scores by user and day
    for task in ("ctr", "ctcvr"):
        # Equal candidates differ in the last bit of their scores: ties are broken at random.
        assert metrics[f"{task}_gauc"] == pytest.approx(0.5, abs=0.03)
        assert metrics[f"{task}_gauc_request"] == pytest.approx(0.5, abs=0.03)
        assert metrics[f"{task}_gauc_users"] > 300
