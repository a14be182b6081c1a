"""Figures show the values that they were given, also when there are few of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from model.registry import plots


def rendered(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    return buffer.getvalue()


def test_loss_marks_where_a_day_begins() -> None:
    losses = [(f"2026-03-0{1 + place // 3}/0/{place}", 0.7 - place / 100) for place in range(6)]
    figure = plots.loss(losses, "tiny")
    (axes,) = figure.axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([value for _, value in losses])
    assert [text.get_text().strip() for text in axes.texts] == ["2026-03-01", "2026-03-02"]
    assert rendered(figure)


def test_gauc_by_day_leaves_out_what_is_undefined_and_marks_the_promoted() -> None:
    days = [
        {"ds": "2026-03-02", "ctr_gauc": "0.6", "ctcvr_gauc": None, "promoted": True},
        {"ds": "2026-03-03", "ctr_gauc": 0.61, "ctcvr_gauc": 0.65, "promoted": False},
    ]
    figure = plots.gauc_by_day(days, "tiny")
    ctr, ctcvr = figure.axes
    assert list(ctr.lines[0].get_ydata()) == [0.6, 0.61]
    assert list(ctcvr.lines[0].get_ydata()) == [0.65]
    assert np.asarray(ctr.collections[0].get_offsets()).tolist() == [[0.0, 0.6]]
    assert rendered(figure)


def test_calibration_shows_mean_score_and_rate_of_each_bin() -> None:
    scores = np.repeat([0.1, 0.5], 50)
    labels = np.r_[np.ones(5), np.zeros(45), np.ones(25), np.zeros(25)]
    figure = plots.calibration({"ctr": labels, "ctcvr": labels}, {"ctr": scores, "ctcvr": scores}, "tiny")
    points = figure.axes[0].lines[1]
    assert list(points.get_xdata()) == pytest.approx([0.1] * 5 + [0.5] * 5)
    assert np.mean(points.get_ydata()[:5]) == pytest.approx(0.1)
    assert np.mean(points.get_ydata()[5:]) == pytest.approx(0.5)
    assert rendered(figure)


def test_calibration_of_few_rows_without_a_positive() -> None:
    none = np.zeros(3)
    figure = plots.calibration({"ctr": none, "ctcvr": none}, {"ctr": none, "ctcvr": none}, "tiny")
    assert rendered(figure)


def test_segments_stand_beside_the_champions_with_their_users() -> None:
    ours = {"history_none": {"ctr_gauc": 0.6, "ctr_gauc_users": 12.0, "ctcvr_gauc": None}}
    figure = plots.gauc_by_segment({"candidate": ours, "champion": {}}, "tiny")
    ctr, ctcvr = figure.axes
    assert [patch.get_height() for patch in ctr.patches] == [0.6]
    assert [tick.get_text() for tick in ctr.get_xticklabels()] == ["history\nnone\n12 users"]
    assert [tick.get_text() for tick in ctcvr.get_xticklabels()] == ["history\nnone\nno users"]
    assert rendered(figure)


def test_lengths_are_binned_by_whole_tokens() -> None:
    lengths = {"static": np.array([0, 0, 3]), "candidate": np.arange(100)}
    figure = plots.sequence_lengths(lengths, "foodlog")
    assert [patch.get_height() for patch in figure.axes[0].patches] == [2, 0, 0, 1]
    assert {patch.get_height() for patch in figure.axes[1].patches[:-1]} <= {3}
    assert rendered(figure)


def test_calibration_weighs_candidates_by_what_they_stand_for() -> None:
    labels, scores = np.tile([1.0, 0.0], 10), np.full(20, 0.25)
    both = ({"ctr": labels, "ctcvr": labels}, {"ctr": scores, "ctcvr": scores}, "tiny")
    weighted = plots.calibration(*both, np.tile([1.0, 3.0], 10)).axes[0].containers[0].lines[0].get_ydata()
    assert weighted == pytest.approx(np.full(10, 0.25))
