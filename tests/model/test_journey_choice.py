"""Settings on journey are chosen by as many trials for each family, whichever were cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.evidence import journey_choice
from model.config.presets import config_of
from spark_jobs.contract.command import CommandError


def test_trials_are_the_same_again_all_different_and_the_preset_first() -> None:
    for family in ("tiny", "dcn"):
        trials = journey_choice.trials_of(family, 12)
        assert trials == journey_choice.trials_of(family, 12)
        assert trials[:8] == journey_choice.trials_of(family, 8)
        assert trials[0] == family
        assert len({config_of(model).to_json() for model in trials}) == 12
        assert max(map(len, trials)) < 256  # they name folders
    assert any("num_blocks" in model for model in journey_choice.trials_of("tiny", 12))
    assert not any("num_blocks" in model for model in journey_choice.trials_of("dcn", 12))


def test_all_families_try_the_same_but_for_blocks_and_what_is_beyond_the_paper() -> None:
    tried = {
        family: [model.split(",")[1:] for model in journey_choice.trials_of(family, 12)]
        for family in ("tiny", "tiny_dcn", "dcn", "wukong")
    }
    own = ("num_blocks", *journey_choice.BEYOND)

    def shared(changes: list[str]) -> list[str]:
        return [one for one in changes if not any(name in one for name in own) and "dense_lr" not in one]

    for family, trials in tried.items():
        assert list(map(shared, trials)) == list(map(shared, tried["tiny"]))
        is_free = any("listwise" in one for changes in trials for one in changes)
        assert is_free == (family != "tiny")


def test_the_best_is_taken_of_as_many_trials_as_each_family_has(tmp_path: Path) -> None:
    tiny, dcn = (journey_choice.trials_of(family, 5) for family in ("tiny", "dcn"))
    for model, value in [
        *zip(tiny, (0.5, 0.7, 0.6, 0.9), strict=False),
        *zip([*dcn[:1], *dcn[2:4]], (0.4, 0.3, 0.6), strict=True),
    ]:
        (tmp_path / model).mkdir()
        text = json.dumps({"metrics": {"ctcvr_gauc_request": value}})
        (tmp_path / model / "1.json").write_text(text)
    best = journey_choice.chosen(tmp_path, ["tiny", "dcn"], 5)
    assert best["tiny"]["model"] == tiny[1]  # not the fourth, better one: dcn has three
    assert (best["dcn"]["model"], best["dcn"]["value"]) == (dcn[3], 0.6)
    assert {len(one["trials"]) for one in best.values()} == {3}
    with pytest.raises(CommandError, match="has no trial of wukong"):
        journey_choice.chosen(tmp_path, ["tiny", "wukong"], 5)
