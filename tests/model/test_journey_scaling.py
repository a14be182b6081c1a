"""MTGR's sizes on journey: rates by trials, the law and its fit, and what of a cut off run is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.evidence import journey_scaling as scaling
from model.config.presets import config_of
from spark_jobs.contract.command import CommandError


def write(folder: Path, model: str, seed: int, value: float) -> None:
    (folder / model).mkdir(parents=True, exist_ok=True)
    report = {
        "seed": seed,
        "metrics": {"ctcvr_gauc_request": value, "ctr_gauc_request": value - 0.02},
        "tokens": 1170,
        "rows": 10,
        "train_seconds": 5.0,
        "device": "cpu",
        "versions": {},
        "commit": "abc",
    }
    (folder / model / f"{seed}.json").write_text(json.dumps(report))


def test_the_law_is_the_line_through_the_logarithm_of_flops() -> None:
    law = scaling.law_of([1e6, 1e7, 1e9], [0.80, 0.81, 0.83])
    assert law == pytest.approx({"slope": 0.01, "intercept": 0.74, "r2": 1.0})
    assert scaling.law_of([1, 10, 100, 1000], [0.1, 0.3, 0.1, 0.3])["r2"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="a law of 2 sizes"):
        scaling.law_of([1, 2], [1, 2])


def test_sizes_are_told_apart_by_their_flops_and_lengths_by_what_they_read() -> None:
    flops = [config_of(scaling.model_of(size, 1e-3)).model.flops(117) for size in scaling.SIZES]  # type: ignore[attr-defined]
    assert flops == sorted(flops)
    assert flops[-1] > 500 * flops[0]
    lengths = scaling.lengths_of(scaling.model_of("2x64", 1e-3))
    assert [config_of(model).model.max_static for model in lengths.values()] == list(scaling.LENGTHS)
    assert scaling.first_day(36) == scaling.FIRST


def test_a_size_counts_with_all_its_rates_and_the_best_of_them_is_scored(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no size with trials of all rates"):
        scaling.result_of(tmp_path)
    for k, size in enumerate(("1x32", "2x64", "3x128")):
        for rate in scaling.RATES:
            write(tmp_path / "trials", scaling.model_of(size, rate), 1, 0.8 - abs(rate - 5e-4))
        for seed in (1, 2):
            write(tmp_path / "test", scaling.model_of(size, 5e-4), seed, 0.8 + 0.01 * k + 0.001 * seed)
    write(tmp_path / "trials", scaling.model_of("4x256", 5e-4), 1, 0.9)  # of its other rates nothing is known
    groups = scaling.jobs_of(tmp_path, "test", [1, 2])
    first, *of_weeks = groups
    assert first[2][:3] == [(scaling.model_of(size, 5e-4), 1) for size in ("1x32", "2x64", "3x128")]
    assert [days["first"] for _, days, _ in of_weeks] == [scaling.first_day(weeks) for weeks in (18, 9, 4)]
    assert len({folder for folder, _, _ in groups}) == 4
    write(of_weeks[0][0], scaling.model_of("2x64", 5e-4), 1, 0.79)
    result = scaling.result_of(tmp_path)
    assert list(result["sizes"]) == ["1x32", "2x64", "3x128"]
    assert result["summary"]["scaling_sizes"] == 3
    assert 0.9 < result["summary"]["scaling_r2"] <= 1
    assert {weeks: made["ctcvr_gauc_request"] for weeks, made in result["weeks"].items()} == {
        "36": [0.811, 0.812],
        "18": [0.79],
    }
    assert "| 18 weeks | 16.6 | 1 | 0.7900 +-0.0000 |" in scaling.table(result)
