"""Metrics against brute force over all pairs, against scikit-learn, and where they are not defined."""

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from model.judging.metrics import auc, calibration_error, copc, group_auc, group_ids, log_loss, task_metrics


def brute_force(label, score):
    positive, negative = score[label == 1], score[label == 0]
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return np.mean(wins)


@pytest.fixture(params=[3, 1000], ids=["many_ties", "few_ties"])
def rows(request):
    rng = np.random.default_rng(7)
    label = (rng.random(400) < 0.3).astype(int)
    score = rng.integers(0, request.param, 400) / request.param + 0.1 * label
    return rng.integers(0, 60, 400), label, score


def test_auc_is_exact(rows):
    _, label, score = rows
    assert auc(label, score) == pytest.approx(brute_force(label, score), abs=1e-12)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_group_auc_is_exact(rows):
    group, label, score = rows
    expected, weights = [], []
    for one in np.unique(group):
        of = group == one
        if 0 < label[of].sum() < of.sum():
            expected.append(brute_force(label[of], score[of]))
            weights.append(of.sum())
    found = group_auc(group, label, score)
    np.testing.assert_allclose(found.auc, expected, atol=1e-12)
    assert found.gauc == pytest.approx(np.average(expected, weights=weights))
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.num_groups == len(np.unique(group))
    low, high = found.interval()
    assert low < found.gauc < high


def test_groups_of_one_class_do_not_count():
    found = group_auc(np.array([1, 1, 2, 2]), np.array([1, 1, 0, 1]), np.array([0.1, 0.9, 0.3, 0.8]))
    assert (found.gauc, len(found.auc), found.num_groups) == (1.0, 1, 2)
    none = group_auc(np.array([1, 2]), np.array([1, 0]), np.array([0.5, 0.5]))
    assert np.isnan(none.gauc)
    assert np.isnan(none.interval()[0])
    assert np.isnan(group_auc(np.zeros(0, int), np.zeros(0), np.zeros(0)).gauc)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        group_auc(np.zeros(2, int), np.array([0, 1]), np.array([0.1, np.nan]))


def test_calibration():
    label, score = np.array([1, 0, 0, 0]), np.array([0.25, 0.25, 0.25, 0.25])
    assert copc(label, score) == pytest.approx(1.0)
    assert copc(label, score / 2) == pytest.approx(2.0)
    assert calibration_error(label, score, num_bins=1) == pytest.approx(0.0)
    assert log_loss(label, score) == pytest.approx(sklearn_log_loss(label, score))


def test_group_ids_tell_columns_apart():
    ids = group_ids(np.array([1, 1, 2, 2]), np.array(["a", "b", "a", "a"]))
    assert len(set(ids)) == 3
    assert ids[2] == ids[3]


def test_task_metrics_use_frozen_scores_within_windows_and_live_ones_within_requests():
    label = np.array([1, 0, 1, 0])
    frozen, live = np.array([0.9, 0.1, 0.9, 0.1]), np.array([0.1, 0.9, 0.1, 0.9])
    one = np.zeros(4, int)
    found = task_metrics("ctr", label, frozen=frozen, live=live, window=one, user=one, request=one)
    assert (found["ctr_gauc"], found["ctr_auc_frozen"]) == (1.0, 1.0)
    assert (found["ctr_gauc_request"], found["ctr_auc"]) == (0.0, 0.0)
    assert (found["ctr_gauc_groups"], found["ctr_gauc_users"]) == (1.0, 1.0)
