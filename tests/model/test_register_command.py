"""Registration: one version a run wherever it was killed, never one without its files, and bytes freed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import prune, register
from model.registry import packaging, tracking
from model.registry import versions as registry
from model.registry.store import client
from model.registry.versions import RegistryError, Version
from model.runs import store
from model.runs.files import RunError
from model.runs.store import CONFIG, WEIGHTS, Run
from spark_jobs.contract import locations
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake.verdicts import NotPassedError
from tests.model.conftest import evaluation_of, pass_gate
from tests.spark_servers import free_port

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04")
PHASES = ("before_log", "after_log", "before_version", "after_version", "after_alias")


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def upload(dataset: Dataset, run: Run, run_id: str) -> str:
    """Logs the two files as a model, as `packaging.log_model` does with code and signature around them."""
    done = packaging._logged(dataset, run)
    if done is not None:
        return done
    experiment = tracking.experiment_id(dataset.name)
    logged = client().create_logged_model(experiment, source_run_id=run_id, tags={"digest": run.digest})
    for name in (CONFIG, WEIGHTS):
        client().log_model_artifact(logged.model_id, str(run.path / name), "artifacts")
    client().finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


@pytest.fixture
def evaluated(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> Run:
    """An evaluated run, with the upload of code left out."""
    monkeypatch.setattr(packaging, "log_model", upload)
    run = make_run(DAYS[1], DAYS[:1])
    candidate = {"ctr_auc": 0.7, "ctcvr_gauc": None, "ctr_gauc": 0.6}
    evaluation = evaluation_of(run.digest, run.ds, candidate)
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    pass_gate(run)
    return run


def test_an_evaluation_that_no_gate_has_passed_is_not_registered(evaluated: Run) -> None:
    """Nor is one that was evaluated again since."""
    evaluation = json.loads((evaluated.path / "evaluation.json").read_text())
    (evaluated.path / "evaluation.json").write_text(json.dumps(evaluation | {"seconds": 2.0}))
    with pytest.raises(NotPassedError, match="--suite evaluation --preset tiny --ds 2026-03-02"):
        register.register(FOODLOG, evaluated)
    pass_gate(evaluated)
    assert register.register(FOODLOG, evaluated)[1]


def test_a_version_says_what_it_was_made_of(evaluated: Run) -> None:
    version, is_new = register.register(FOODLOG, evaluated)
    assert is_new
    assert (version.model, version.version, version.status) == ("mtgr-foodlog", 1, "READY")
    assert (version.preset, version.ds, version.samples_version) == ("tiny", DAYS[1], 7)
    assert version.seen_days == ("2026-03-01",)
    assert version.tags["ctr_auc"] == "0.7"
    assert "ctcvr_gauc" not in version.tags
    assert (
        version.tags["git_sha"] == "0123456789abcdef0123456789abcdef01234567"
    )  # what trained, not what registers
    run = client().get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ctr_auc"] == 0.7
    assert run.data.params["model.d_model"] == "64"
    entry = client().get_model_version("mtgr-foodlog", "1")
    assert entry.description.startswith("tiny of 2026-03-02: trained on 1 days up to 2026-03-01")
    found = registry.aliased("foodlog", registry.CANDIDATE)
    assert found is not None
    assert found.version == 1


@pytest.mark.parametrize("phase", PHASES)
def test_killed_at_any_phase_and_run_again_there_is_one_version(
    evaluated: Run, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    def reach(name: str) -> None:
        if name == f"register:{phase}":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(register, "reach", reach)
        with pytest.raises(Killed):
            register.register(FOODLOG, evaluated)
    version, _ = register.register(FOODLOG, evaluated)
    assert register.register(FOODLOG, evaluated) == (version, False)
    assert [v.version for v in registry.versions("foodlog")] == [1]
    experiment = tracking.experiment_id("foodlog")
    assert len(client().search_runs([experiment])) == 1
    assert len(client().search_logged_models([experiment])) == 1


def test_an_answer_that_was_lost_does_not_make_a_second_version(
    evaluated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server made the version, the client saw an error."""
    made = type(client()).create_model_version

    def lost(self: Any, *args: Any, **kwargs: Any) -> Any:
        made(self, *args, **kwargs)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(type(client()), "create_model_version", lost)
        with pytest.raises(ConnectionError):
            register.register(FOODLOG, evaluated)
    assert register.register(FOODLOG, evaluated)[1] is False
    assert len(registry.versions("foodlog")) == 1


def test_half_an_upload_is_deleted_and_made_again(evaluated: Run) -> None:
    experiment = tracking.experiment_id("foodlog")
    half = client().create_logged_model(experiment, tags={"digest": evaluated.digest})
    client().log_model_artifact(half.model_id, str(evaluated.path / CONFIG), "artifacts")
    version, _ = register.register(FOODLOG, evaluated)
    assert version.model_id != half.model_id
    assert [m.model_id for m in client().search_logged_models([experiment])] == [version.model_id]


def _files_of(version: Version) -> Path:
    place = client().get_logged_model(version.model_id).artifact_location
    return Path(str(place).removeprefix("file://"), "artifacts")


def test_a_version_whose_files_were_damaged_is_replaced_unless_it_serves(evaluated: Run) -> None:
    version, _ = register.register(FOODLOG, evaluated)
    (_files_of(version) / WEIGHTS).write_bytes(b"half")
    with pytest.raises(RegistryError, match=r"is candidate and stays"):
        register.register(FOODLOG, evaluated)
    client().delete_registered_model_alias("mtgr-foodlog", registry.CANDIDATE)
    again, is_new = register.register(FOODLOG, evaluated)
    assert is_new
    assert [v.version for v in registry.versions("foodlog")] == [again.version]
    assert registry.fetch(again).joinpath(WEIGHTS).read_bytes() == (evaluated.path / WEIGHTS).read_bytes()


def test_fetch_checks_what_it_kept(evaluated: Run) -> None:
    version, _ = register.register(FOODLOG, evaluated)
    kept = registry.fetch(version)
    (kept / WEIGHTS).write_bytes(b"changed on disk")
    assert registry.fetch(version) == kept
    assert (kept / WEIGHTS).read_bytes() == (evaluated.path / WEIGHTS).read_bytes()


def test_a_run_that_was_not_evaluated_is_refused(make_run: Callable[..., Run]) -> None:
    with pytest.raises(RunError, match=r"evaluate it: python -m model.evaluate"):
        register.register(FOODLOG, make_run(DAYS[1], DAYS[:1]))


@pytest.mark.usefixtures("var")
def test_the_command_says_wrong_usage_and_missing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert register.main(["--dataset", "nosuch", "--ds", DAYS[0]]) == 2
    assert register.main(["--dataset", "foodlog", "--ds", "yesterday"]) == 2
    assert register.main(["--dataset", "foodlog", "--ds", DAYS[0]]) == 1
    assert capsys.readouterr().out == ""


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_pruning_frees_the_bytes_of_old_versions_and_spares_those_in_use(
    var: Path, make_version: Callable[..., tuple[Run, Version]]
) -> None:
    made = [make_version(DAYS[place], DAYS[:place], preset="tiny") for place in (1, 2, 3)]
    made += [make_version(DAYS[3], DAYS[:3], preset="small")]
    with registry.exclusive("foodlog", "test"):
        registry.set_champion("foodlog", made[0][1])
    artifacts = var / "mlflow" / "artifacts"
    gone = made[1][1]
    packages = [locations.package("foodlog", version.version) for _, version in made]
    for package in packages:
        package.mkdir(parents=True)
        (package / "dense.safetensors").write_bytes(b"weights")
    size = _bytes(_files_of(gone))
    assert size > 0
    before = _bytes(artifacts)
    assert [v.version for v in prune.superfluous("foodlog", 2)] == [gone.version]
    link = locations.serving() / "foodlog" / "previous"
    link.symlink_to(str(gone.version))  # a server may go back to it
    assert prune.superfluous("foodlog", 2) == []
    link.unlink()
    assert prune.prune("foodlog", 2) == ([gone.version], [])
    assert _bytes(artifacts) <= before - size
    assert [v.version for v in registry.versions("foodlog")] == [1, 3, 4]
    assert [package for package in packages if not package.exists()] == [packages[gone.version - 1]]
    assert prune.superfluous("foodlog", 2) == []
    champion = registry.champion("foodlog")
    assert champion is not None
    assert champion.version == 1


def test_runs_are_pruned_by_the_rule_of_the_registry(
    make_version: Callable[..., tuple[Run, Version]],
    make_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stays: the newest, the champion's and its base, and what the next training continues from."""
    monkeypatch.setattr(prune, "collect_garbage", lambda _: None)
    days = [f"2026-03-{day:02}" for day in range(1, 12)]
    base = make_run(days[1], days[:1])
    runs = {days[1]: base}
    for place in range(2, 11):
        if place == 2:
            run, champion = make_version(days[2], days[:2], base_digest=base.digest)
        else:
            # Day 9 has seen most: the newest were made anew, from what was left of the samples.
            run, _ = make_version(days[place], days[:place] if place < 9 else days[7:place])
        runs[days[place]] = run
    with registry.exclusive("foodlog", "test"):
        registry.set_champion("foodlog", champion)
    half = runs[days[3]].path.with_name(".2026-03-20.partial")
    half.mkdir()
    _, removed = prune.prune("foodlog", 1)
    assert [v.version for v in registry.versions("foodlog")] == [1, 9]  # the champion and the newest
    assert removed == [f"tiny/{ds}" for ds in (*days[3:8], days[9])]
    left = {path.name for path in half.parent.iterdir()} - {".lock"}
    assert left == {days[1], days[2], days[8], days[10], half.name}
    for keep in (1, 2, 3, 4, 5, 50):  # also more than there are
        assert prune.prune("foodlog", keep) == ([], [])
    with store.exclusively(half.parent), pytest.raises(RunError, match="another process is training"):
        prune.prune("foodlog", 1)


def test_a_budget_keeps_as_many_as_fit_and_a_dry_run_changes_nothing(
    var: Path, make_version: Callable[..., tuple[Run, Version]], capsys: pytest.CaptureFixture[str]
) -> None:
    made = [make_version(DAYS[place], DAYS[:place], preset="tiny") for place in (1, 2, 3)]
    with registry.exclusive("foodlog", "test"):
        registry.set_champion("foodlog", made[0][1])
    total = prune.size_of_all("foodlog")
    freed = {keep: prune.size_of_outdated("foodlog", keep) for keep in (1, 2, 3)}
    assert total > freed[1] > freed[2] == freed[3] == 0  # the champion is the oldest, and stays
    assert prune.fitting("foodlog", 3, total) == 3
    assert prune.fitting("foodlog", 3, total - 1) == prune.fitting("foodlog", 3, 0) == 1
    before = {path: path.stat().st_mtime_ns for path in (var / "runs").rglob("*")}

    command = ["--dataset", "foodlog", "--keep", "3", "--dry-run", "--budget"]
    assert prune.main([*command, str(total - 1)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["deleted"], told["kept"], told["dry_run"]) == ([made[1][1].version], 1, True)
    assert (told["freed"], told["left"]) == (freed[1], total - freed[1])
    assert prune.main([*command, "1"]) == 1
    refused = json.loads(capsys.readouterr().out.splitlines()[-1])["refused"]
    assert refused.startswith(f"runs and versions of foodlog hold {total - freed[1]} bytes, --budget 1")
    assert len(registry.versions("foodlog")) == 3
    assert {path: path.stat().st_mtime_ns for path in (var / "runs").rglob("*")} == before


@pytest.mark.slow
def test_pruning_through_a_server_frees_the_same_bytes(
    var: Path, make_version: Callable[..., tuple[Run, Version]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "model.tracking", "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("ready ")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            for place in (1, 2, 3):
                run, version = make_version(DAYS[place], DAYS[:place])
                client().log_text(version.run_id, "x" * 1000, "pages/report.html")
            artifacts = var / "mlflow" / "artifacts"
            before, total = _bytes(artifacts), prune.size_of_all("foodlog")
            assert total > before > 3 * 1000  # and the runs on this machine
            freed = prune.size_of_outdated("foodlog", 1)
            assert prune.main(["--dataset", "foodlog", "--keep", "3", "--budget", str(total - freed)]) == 0
            assert [v.version for v in registry.versions("foodlog")] == [3]
            assert prune.size_of_all("foodlog") == total - freed
            assert _bytes(artifacts) == prune.size_of_all("foodlog") - _bytes(run.path.parents[1])
        finally:
            server.terminate()


def test_at_least_one_version_stays() -> None:
    assert prune.main(["--dataset", "foodlog", "--keep", "0"]) == 2
