"""Trials of several machines in one file: which count, and what the tables show of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.evidence import journey_trials
from benchmarks.evidence.journey_choice import BEYOND, CHOICE, SPACE
from benchmarks.evidence.journey_trials import SETTING
from model.config.presets import config_of
from spark_jobs.contract.command import CommandError

_, *TEST_DAYS = CHOICE.values()


def write(folder: Path, model: str, value: float, first: str = CHOICE["first"]) -> None:
    (folder / model).mkdir(parents=True)
    report = {
        "model": model,
        "days": [first, "2017-11-12", 98],
        "test_days": TEST_DAYS,
        "metrics": {"ctcvr_gauc_request": value, "ctr_gauc_request": value - 0.02},
        "train_seconds": 5.0,
        "device": folder.name,
        "versions": {},
        "commit": "abc",
    }
    (folder / model / "1.json").write_text(json.dumps(report))


def test_trials_of_the_same_weeks_are_joined_and_shown(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    with pytest.raises(CommandError, match="no trial that learned from 2017-08-07"):
        journey_trials.gathered([one])
    write(one, "tiny", 0.79)
    write(other, "tiny", 0.80)
    write(one, "dcn", 0.99, first="2017-10-02")  # learned less than the others
    write(one, f"dcn,{SETTING}", 0.81)
    write(one, f"tiny,{SETTING}", 0.78)
    write(other, f"tiny,{SETTING},model.max_static=0", 0.775)
    write(other, "tiny,model.without=cross,model.shares_items=True", 0.7)
    result = journey_trials.gathered([one, other])
    assert result["models"]["tiny"]["ctcvr_gauc_request"] == pytest.approx(0.795)
    assert (result["models"]["tiny"]["runs"], result["device"]) == (2, ["one", "other"])
    shown = journey_trials.tables(result)
    assert "| `tiny` | 2 | `tiny` | 0.7950 | 3 | 0.7950 |" in shown
    assert f"| `dcn` | 1 | `dcn,{SETTING}` | 0.8100 | 1 | 0.8100 |" in shown
    assert "| `dcn` instead | 0.8100 | +0.0300 |" in shown
    assert "| `model.max_static=0` | 0.7750 | -0.0050 |" in shown
    assert "| `tiny` | 50 | yes | 0.7000 |" in shown


def test_families_are_tried_alike_but_for_what_the_paper_has_not() -> None:
    ours, theirs = (journey_trials.equal_trials(family) for family in ("tiny", "dcn"))
    assert len(set(ours)) == len(set(theirs)) == 8
    for one, other in list(zip(ours, theirs, strict=True))[1:]:  # the first are the presets as they are
        mtgr, dlrm = (config_of(model) for model in (one, other))
        for place in set(SPACE) - set(BEYOND):
            part, _, name = place.partition(".")
            assert getattr(getattr(mtgr, part), name) == getattr(getattr(dlrm, part), name), (one, place)
