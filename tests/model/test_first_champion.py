"""The baseline is made champion once, by the commands of every model; refused, it fails nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deltalake import write_deltalake

from model import promote, register, train
from model.data.synthetic import random_samples
from model.registry import versions as registry
from scripts import first_champion
from spark_jobs.contract import locations
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts

DAYS = ("2026-03-01", "2026-03-02")
ARGUMENTS = ["--dataset", "foodlog", "--ds", DAYS[1]]


def _result(out: str) -> Any:
    return json.loads(out.splitlines()[-1])


def test_a_baseline_that_the_rules_refuse_is_no_failure(
    var: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    for seed, ds in enumerate(DAYS):  # too few users for a GAUC that could be believed
        samples = random_samples(FOODLOG, 30, seed=seed, ds=ds)
        write_deltalake(locations.table("foodlog", "samples"), samples, partition_by=["ds"], mode="append")
    verdicts.allow("foodlog", "samples", DAYS, "a test")
    for _ in range(2):  # run again, it tries again
        assert first_champion.main(ARGUMENTS) == 0
        said = capsys.readouterr()
        assert _result(said.out) == {"ds": DAYS[1], "made": False, "version": None}
        assert "the baseline was refused as first champion" in said.err
        assert registry.versions("foodlog") == []
        assert "gate of its evaluation" in said.err
        assert registry.aliased("foodlog", registry.CHAMPION) is None


def test_a_champion_is_left_alone(
    make_version: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, version = make_version(DAYS[1], (DAYS[0],), "user_tower")
    registry.set_champion("foodlog", version)
    monkeypatch.setattr(train, "main", lambda _: pytest.fail("there is a champion"))
    assert first_champion.main(ARGUMENTS) == 0
    assert _result(capsys.readouterr().out) == {"ds": DAYS[1], "made": False, "version": version.version}


@pytest.mark.parametrize(("code", "of"), [(1, train), (1, register), (1, promote)])
def test_a_step_that_fails_ends_it_with_its_code(
    var: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, of: Any
) -> None:
    done = []
    for name in first_champion.STEPS:
        module = __import__(name, fromlist=["main"])
        monkeypatch.setattr(module, "main", lambda _, m=module: done.append(m) or (code if m is of else 0))
    assert first_champion.main(ARGUMENTS) == code
    assert done[-1] is of
    assert not _result(capsys.readouterr().out)["made"]


def test_wrong_usage_is_refused() -> None:
    assert first_champion.main(["--dataset", "none", "--ds", DAYS[1]]) == 2
    assert first_champion.main(["--dataset", "foodlog", "--ds", "yesterday"]) == 2
