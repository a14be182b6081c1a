"""The presets of a day are trained by one command: the champion's own among them, on one version."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deltalake import write_deltalake

from model import train
from model.data.synthetic import random_samples
from model.registry.machine import Machine
from model.runs.store import load_run
from spark_jobs.contract import locations
from spark_jobs.contract.command import UsageError
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")


def add_day(ds: str) -> None:
    table = random_samples(FOODLOG, 20, seed=1, ds=ds)
    write_deltalake(locations.table("foodlog", "samples"), table, partition_by=["ds"], mode="append")
    verdicts.allow("foodlog", "samples", [ds], "a test")


def test_the_champions_preset_is_trained_beside_its_challengers(monkeypatch: pytest.MonkeyPatch) -> None:
    champion: list[Any] = [None]
    monkeypatch.setattr(train.registry, "aliased", lambda dataset, alias: champion[0])
    assert train.presets_of("foodlog", ["tiny", "champion"]) == ["tiny"]
    with pytest.raises(UsageError, match="mtgr-foodlog has no champion yet"):
        train.presets_of("foodlog", ["champion"])
    champion[0] = SimpleNamespace(preset="user_tower")
    assert train.presets_of("foodlog", ["tiny", "champion"]) == ["tiny", "user_tower"]
    assert train.presets_of("foodlog", ["user_tower", "tiny", "champion"]) == ["user_tower", "tiny"]


def test_all_presets_of_a_day_are_trained_on_one_version_of_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for name in ("MTGR_LAKE", "MTGR_RUNS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    add_day(DAYS[0])

    def log(*arguments: Any, machine: Machine) -> str:  # while the first preset ends, another day is built
        add_day(DAYS[1])
        assert machine.curves()[0]["system/cpu_utilization_percentage"]
        return ""

    monkeypatch.setattr(train.record, "log_training", log)
    arguments = ["--dataset", "foodlog", "--ds", DAYS[2], "--preset", "tiny", "user_tower"]
    assert train.main(arguments) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(answer["presets"]) == ["tiny", "user_tower"]
    assert answer["run"] == answer["presets"]["tiny"]["run"]
    for preset in answer["presets"]:
        assert load_run("foodlog", preset, DAYS[2]).seen_days == {DAYS[0]: 0}
