"""Candidates that stand for several impressions: loss, log loss and calibration count them so."""

import dataclasses

import numpy as np
import pytest
import torch

from model.data.encoder import SampleEncoder, arrow_schema
from model.data.steps import Step
from model.data.synthetic import random_batch, random_samples
from model.judging.evaluation import LABELS, metrics_of, rates_of
from model.judging.metrics import auc, calibration_error, copc, log_loss, task_metrics
from model.judging.scoring import SCORES, candidate_frame
from model.rankers.protocol import build_ranker
from model.training.ranks import process_group
from model.training.step import Trainer
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.tables import rows_digest
from tests.model.test_training import config

SAMPLED = dataclasses.replace(FOODLOG, has_weights=True)
CPU = torch.device("cpu")


def test_weights_come_with_the_rows_and_are_one_where_there_are_none():
    table = random_samples(SAMPLED, 9, seed=1)
    assert "candidate_weight" in arrow_schema(SAMPLED).names
    assert "candidate_weight" not in arrow_schema(FOODLOG).names
    assert rows_digest(SAMPLED) != rows_digest(FOODLOG)
    batch = SampleEncoder(SAMPLED).encode(table)
    expected = np.concatenate(table["candidate_weight"].to_pylist()).astype(np.float32)
    assert batch.weights.tolist() == expected.tolist()
    chosen = batch.select(torch.tensor([4, 1]))
    assert chosen.weights.tolist() == [
        w for row in (4, 1) for w in np.float32(table["candidate_weight"][row].as_py())
    ]
    sums = [sum(row) for row in table["candidate_weight"].to_pylist()]
    torch.testing.assert_close(batch.weights_B(), torch.tensor(sums, dtype=torch.float64))
    assert candidate_frame(table)["weight"].tolist() == expected.tolist()
    request = table.drop(["candidate_weight"])  # a request that is served has none
    assert SampleEncoder(SAMPLED).encode(request).weights.unique().tolist() == [1.0]
    assert random_batch(FOODLOG, 3).weights.unique().tolist() == [1.0]


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf])
def test_a_weight_that_is_none_is_refused(weight):
    rows = random_samples(SAMPLED, 2, max_candidates=1).to_pylist()
    rows[1]["candidate_weight"] = [weight]
    with pytest.raises(ValueError, match=r"column candidate_weight, row 1 .* is not a finite weight above 0"):
        SampleEncoder(SAMPLED).encode(rows)


def test_a_weight_is_worth_as_many_rows():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 60), rng.uniform(0.05, 0.95, 60)
    weight = rng.integers(1, 6, 60)
    labels, scores = np.repeat(label, weight), np.repeat(score, weight)
    assert log_loss(label, score, weight) == pytest.approx(log_loss(labels, scores))
    assert copc(label, score, weight) == pytest.approx(copc(labels, scores))
    one_bin = calibration_error(label, score, 1, weight=weight)
    assert one_bin == pytest.approx(calibration_error(labels, scores, 1))
    group = np.arange(60) // 10
    keys = {"frozen": score, "live": score, "window": group, "user": group, "request": group}
    with_weights = task_metrics("ctr", label, **keys, weight=weight)
    without, ones = task_metrics("ctr", label, **keys), task_metrics("ctr", label, **keys, weight=np.ones(60))
    assert ones == pytest.approx(without)
    differ = {name for name, value in with_weights.items() if value != pytest.approx(without[name])}
    assert differ == {"ctr_log_loss", "ctr_log_loss_frozen", "ctr_copc", "ctr_calibration_error"}
    assert with_weights["ctr_auc"] == auc(label, score)  # ranks what was sampled


def test_metrics_of_a_day_count_a_candidate_as_often_as_it_stands_for():
    frame = candidate_frame(random_samples(SAMPLED, 30, seed=2))
    rng = np.random.default_rng(0)
    scores = {name: rng.uniform(0.05, 0.95, len(frame["weight"])) for name in SCORES}
    found = metrics_of(SAMPLED, frame, scores)
    for task, label in LABELS.items():
        rows = frame[label], scores[f"{task}_live"]
        for metric in (log_loss, copc, calibration_error):
            value = found[f"{task}_{metric.__name__}"]
            assert value == pytest.approx(metric(*rows, weight=frame["weight"]))
            assert value != pytest.approx(metric(*rows))


def test_rates_of_a_day_are_those_of_what_was_shown_not_of_what_was_kept():
    clicked = np.array([True, False, False, True])
    ordered = np.array([True, False, False, False])
    frame = {"label_click": clicked, "label_conversion": ordered}
    assert rates_of(frame) == {"click_rate": 0.5, "conversion_rate": 0.25}
    weights = np.array([1.0, 4.0, 4.0, 1.0])  # three quarters of what was not clicked were left out
    assert rates_of(frame | {"weight": weights}) == {"click_rate": 0.2, "conversion_rate": 0.1}


def test_the_loss_is_weighted_and_a_common_factor_changes_nothing():
    batch = random_batch(SAMPLED, 30, seed=3)
    one = config(frozen_share=0.0)
    with torch.no_grad():
        logits = build_ranker(SAMPLED, one.model, one.train.seed)(batch)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none")
        expected = float((losses * batch.weights).sum() / batch.weights.sum())
    taken = []
    for factor in (1.0, 4.0):
        with process_group(CPU):
            trainer = Trainer(SAMPLED, one, CPU)
            scaled = dataclasses.replace(batch, weights=batch.weights * factor)
            weight = float(scaled.weights_B().sum())
            trainer.step(
                Step(
                    name="0",
                    batch=scaled,
                    num_candidates=scaled.num_candidates,
                    weight=weight,
                    num_tokens=0,
                    row_hash=torch.ones(30),
                )
            )
            taken.append(trainer.losses()[0][1])
    assert taken == pytest.approx([expected, expected], rel=1e-5)
    assert abs(expected - float(losses.sum() / batch.num_candidates)) > 1e-3
