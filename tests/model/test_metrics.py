"""Metrics against brute force over all pairs, against scikit-learn, and where they are not defined."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score
from torchrec.metrics.gauc import compute_gauc_3d

from model.judging.metrics import (
    auc,
    calibration_error,
    copc,
    group_auc,
    group_ids,
    log_loss,
    paired_gain,
    task_metrics,
)


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
    low, high = found.interval(group // 2)
    assert low < found.gauc < high


def test_groups_of_one_class_do_not_count():
    found = group_auc(np.array([1, 1, 2, 2]), np.array([1, 1, 0, 1]), np.array([0.1, 0.9, 0.3, 0.8]))
    assert (found.gauc, len(found.auc), found.num_groups) == (1.0, 1, 2)
    none = group_auc(np.array([1, 2]), np.array([1, 0]), np.array([0.5, 0.5]))
    assert np.isnan(none.gauc)
    assert np.isnan(none.interval(np.array([1, 2]))[0])
    assert np.isnan(group_auc(np.zeros(0, int), np.zeros(0), np.zeros(0)).gauc)


def test_the_mean_over_groups_is_torchrecs_gauc():
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 40)
    group = np.repeat(np.arange(40), sizes)
    label = rng.integers(0, 2, len(group))
    score = rng.permutation(len(group)) / len(group) + 0.001  # without ties, which TorchRec counts as losses
    dense = np.zeros((3, 1, 40, 8))
    place = np.arange(len(group)) - np.repeat(sizes.cumsum() - sizes, sizes)
    dense[:, 0, group, place] = score, label, np.ones(len(group))
    of_torchrec = compute_gauc_3d(*torch.from_numpy(dense))
    ours = group_auc(group, label, score)
    assert int(of_torchrec["num_samples"]) == len(ours.auc) < 40
    assert float(of_torchrec["auc_sum"] / of_torchrec["num_samples"]) == pytest.approx(ours.mean)


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


def windows_of(rng, num_users, windows_a_user):
    """Rows of users whose windows are alike: half of the users are ranked rightly, half of them wrongly."""
    user = np.repeat(np.arange(num_users), windows_a_user * 2)
    window = np.repeat(np.arange(num_users * windows_a_user), 2)
    label = np.tile([0, 1], num_users * windows_a_user)
    is_right = np.repeat(rng.permutation(num_users) % 2, windows_a_user * 2)
    return user, window, label, np.where(is_right == 1, label, 1 - label).astype(float)


def test_an_interval_is_as_wide_as_there_are_users_however_many_windows_each_has():
    widths = []
    for windows in (1, 40):
        user, window, label, score = windows_of(np.random.default_rng(3), 50, windows)
        low, high = group_auc(window, label, score).interval(user)
        assert low < 0.5 < high
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.02)  # over windows it would be a sixth
    assert widths[0] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(50), rel=0.15)


def noisy(rng, label, strength):
    """Scores that know the label a little."""
    return strength * label + rng.normal(size=len(label))


def test_a_paired_gain_is_the_difference_of_the_gaucs_and_its_interval_holds_it():
    rng = np.random.default_rng(5)
    user = np.sort(rng.integers(0, 300, 6000))
    label = (rng.random(6000) < 0.3).astype(int)
    better, worse = noisy(rng, label, 1.0), noisy(rng, label, 0.5)
    ours, theirs = group_auc(user, label, better), group_auc(user, label, worse)
    found = paired_gain(ours, theirs, user)
    assert found.gain == pytest.approx(ours.gauc - theirs.gauc, abs=1e-12)
    assert 0 < found.low < found.gain < found.high
    assert found.users == len(np.unique(user[ours.row]))
    assert paired_gain(ours, theirs, user) == found  # seeded
    reverse = paired_gain(theirs, ours, user)
    assert (reverse.gain, reverse.low) == (pytest.approx(-found.gain), pytest.approx(-found.high))
    with pytest.raises(ValueError, match="different groups"):
        paired_gain(ours, group_auc(user // 2, label, worse), user)


def test_a_paired_interval_is_as_wide_as_there_are_users_however_many_windows_each_has():
    """What one user's windows say is one draw: a win over windows alone would promote by chance."""
    widths = []
    for windows in (1, 40):
        user, window, label, score = windows_of(np.random.default_rng(3), 50, windows)
        ours, theirs = group_auc(window, label, score), group_auc(window, label, np.zeros(len(label)))
        gain = paired_gain(ours, theirs, user)
        assert (gain.users, gain.gain) == (50, 0)
        widths.append(gain.high - gain.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.02)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(50), rel=0.15)


def test_the_draws_of_a_paired_bootstrap_are_those_of_a_plain_one():
    rng = np.random.default_rng(6)
    user = np.repeat(np.arange(40), 10)
    label = (rng.random(400) < 0.4).astype(int)
    ours, theirs = (group_auc(user, label, noisy(rng, label, s)) for s in (0.9, 0.6))
    found = paired_gain(ours, theirs, user)
    difference, weight = (ours.auc - theirs.auc) * ours.weight, ours.weight
    plain = []
    for _ in range(4000):
        drawn = rng.choice(len(weight), len(weight))
        plain.append(difference[drawn].sum() / weight[drawn].sum())
    low, high = np.quantile(plain, (0.025, 0.975))
    assert (found.low, found.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))


def test_two_models_of_one_quality_are_told_apart_in_one_of_forty_trials():
    rng = np.random.default_rng(8)
    user = np.repeat(np.arange(80), 8)
    wins = 0
    for trial in range(400):
        label = (rng.random(640) < 0.4).astype(int)
        ours, theirs = (group_auc(user, label, noisy(rng, label, 0.5)) for _ in range(2))
        wins += paired_gain(ours, theirs, user, seed=trial).low > 0
    assert 2 <= wins <= 22  # 10 expected, 5 % of trials two-sided


def test_a_paired_gain_without_a_group_that_counts_is_undefined():
    none = group_auc(np.array([1, 2]), np.array([1, 0]), np.array([0.5, 0.5]))
    assert np.isnan(paired_gain(none, none, np.array([1, 2])).low)
