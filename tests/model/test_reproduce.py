"""A version is trained again from what its lineage names; what is gone is named before any training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from deltalake import DeltaTable

from model import register, reproduce
from model.registry import packaging
from model.registry import record as run_record
from model.runs.store import load_run
from model.training import loop as training
from model.training import progress
from spark_jobs.contract import datasets, environment, locations
from tests.model.conftest import pass_gate
from tests.model.test_lineage import CPU, WEEK, build, build_anew, evaluate, with_feature
from tests.model.test_register_command import upload
from tests.model.test_training import DATASET, config

HEAD = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def runs(var: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Samples of four days, and a clean commit."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(packaging, "log_model", upload)
    monkeypatch.setattr(progress, "git_sha", lambda *_: HEAD)
    monkeypatch.setattr(reproduce, "git_sha", lambda *_: HEAD)
    build(DATASET, *WEEK[:4])
    torch.set_num_threads(1)  # as the commands do, and so sums come in one order
    # The command sets MTGR_RUNS for its process, which here is that of the tests.
    monkeypatch.setenv("MTGR_RUNS", str(var / "runs"))
    return var / "runs"


def make(ds: str, **changes: Any) -> int:
    """Trains and registers the run of a day; returns the number of its version."""
    training.train(DATASET, config(**changes), ds, CPU, run_record.log_training)
    run = load_run(DATASET.name, "tiny", ds)
    evaluate(DATASET, run, None)
    pass_gate(run)
    return register.register(DATASET, run)[0].version


def again(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    runs = locations.runs()
    code = reproduce.main(["--dataset", "foodlog", *arguments])
    environment.override({"MTGR_RUNS": str(runs)})
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def untrained(*_: Any) -> None:
    raise AssertionError("it trains, although something is gone")


def test_a_lineage_of_two_trainings_gives_an_equal_digest(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(WEEK[1])
    build(DATASET, WEEK[0])  # built again since: the first training read an older version of the day
    number = make(WEEK[3], dense_lr=0.002)
    # Another declaration since then is no reason: the version keeps its own.
    monkeypatch.setitem(datasets.DATASETS, "foodlog", with_feature(DATASET))
    digest = load_run("foodlog", "tiny", WEEK[3]).digest
    before = sorted(runs.rglob("*"))
    for arguments in ((), ("--from-base",)):
        code, result = again(capsys, "--version", str(number), *arguments)
        assert (code, result["equal"], result["reproduced"]) == (0, True, digest), result
        assert (result["gone"], result["differs"]) == ([], [])
        assert result["run"].startswith(str(runs.parent / "reproduced" / "foodlog-2"))
    assert sorted(runs.rglob("*")) == before  # in a folder of its own


def test_other_code_is_said_and_another_digest_is_no_success(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    number = make(WEEK[1])
    monkeypatch.setattr(reproduce, "git_sha", lambda *_: "e" * 40)
    monkeypatch.setattr(training, "_FIT_ROWS", 20)  # as other code would have it
    code, result = again(capsys, "--version", str(number))
    assert (code, result["equal"]) == (1, False)
    assert result["differs"] == [f"it was trained by the commit {HEAD}, this is {'e' * 40}"]
    assert "an equal digest is not to be expected" in caplog.text
    assert f"the digest is {result['reproduced']}, registered is {result['digest']}" in caplog.text


@pytest.mark.parametrize("arguments", [(), ("--from-base",)])
def test_what_is_gone_is_named_before_anything_is_trained(
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setattr(progress, "git_sha", lambda *_: "f" * 40)
    make(WEEK[1])
    number = make(WEEK[2])
    monkeypatch.setattr(reproduce, "train", untrained)
    uri = locations.table("foodlog", "samples")

    def gone() -> list[str]:
        code, result = again(capsys, "--version", str(number), *arguments)
        assert (code, result["equal"], result["reproduced"]) == (1, False, None)
        return list(result["gone"])

    assert gone() == [f"the commit {'f' * 40} that trained is not in this repository"]

    build(DATASET, WEEK[0], WEEK[1])
    DeltaTable(uri).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    lost = gone()
    assert len(lost) == 2
    assert (
        f"version 3 of {uri} is no longer readable: {1 if arguments else 2} of its files are gone" in lost[0]
    )

    build_anew(DATASET, *WEEK[:4])
    (lost_table, _) = gone()
    assert f"{uri} is another table" in lost_table
    assert "moved away or deleted" in lost_table

    if arguments:
        load_run("foodlog", "tiny", WEEK[1]).path.rename(runs / "elsewhere")
        assert gone()[0].endswith(f"is not in {runs}")


@pytest.mark.usefixtures("runs")
def test_a_version_that_is_not_there_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(["--dataset", "foodlog", "--version", "9"]) == 1
    assert reproduce.main(["--dataset", "foodlog", "--version", "last"]) == 2
    assert reproduce.main(["--dataset", "foodlog"]) == 2
    assert capsys.readouterr().out == ""
