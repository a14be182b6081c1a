"""A registry of its own for each test, over one prepared MLflow database, with versions made in no time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from model.judging.records import EVALUATION, newest
from spark_jobs.lake import verdicts

CODE = "0123456789abcdef0123456789abcdef01234567"
METRICS = {
    f"{task}_{kind}": value
    for task, shift in (("ctr", 0.0), ("ctcvr", 0.05))
    for kind, value in (
        ("auc", 0.70 + shift),
        ("gauc", 0.62 + shift),
        ("gauc_request", 0.66 + shift),
        ("log_loss", 0.30 - shift),
        ("calibration_error", 0.01),
        ("copc", 1.0),
        ("gauc_users", 500.0),
    )
}


def evaluation_of(
    digest: str,
    ds: str,
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What `model.evaluate` writes: metrics that `candidate` changes, those of the champion, and `more`."""
    return {
        "dataset": "foodlog",
        "preset": "tiny",
        "ds": ds,
        "samples_version": 7,
        "day_version": 7,
        "click_rate": 0.1,
        "conversion_rate": 0.03,
        "candidate": {"digest": digest, **METRICS, **candidate},
        "champion": None if champion is None else {**METRICS, **champion},
        "baselines": {"oracle": {"ctr_auc": 0.8, "ctcvr_auc": 0.85}},
        "segments": {"candidate": {}},
        "best": None,
        "beside": {},
        "note": "",
        "seconds": 1.0,
        **more,
    }


def pass_gate(run: Any) -> None:
    """The verdict of a gate that has passed the run's evaluation as it is now."""
    verdict = {"success": True, "table": verdicts.file_digest(newest(run.path, EVALUATION))}
    verdicts.write(verdicts.path_of("foodlog", "evaluation", run.ds, run.record["preset"]), verdict)


@pytest.fixture(scope="session")
def prepared_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them."""
    from model.registry.store import prepare

    path = tmp_path_factory.mktemp("prepared") / "mlflow.db"
    prepare(f"sqlite:///{path}")
    return path


@pytest.fixture
def var(tmp_path: Path, prepared_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh `var` folder with an empty registry, set for this process and its children."""
    for name in ("MTGR_LAKE", "MTGR_RUNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "var"))
    (tmp_path / "var" / "mlflow").mkdir(parents=True)
    shutil.copy(prepared_database, tmp_path / "var" / "mlflow" / "mlflow.db")
    yield tmp_path / "var"
    from model.registry import store as mlflow_store

    mlflow_store._client.cache_clear()


@pytest.fixture
def make_run(var: Path) -> Callable[..., Any]:
    """Makes a run folder whose weights are a few bytes: enough for all that does not score."""

    def make(
        ds: str,
        seen: Sequence[str],
        preset: str = "tiny",
        weights: bytes = b"",
        base_digest: str | None = None,
    ) -> Any:
        from model.config.presets import preset_named
        from model.runs.store import WEIGHTS, partial_path, publish, run_path, write_config
        from spark_jobs.contract.foodlog import FOODLOG

        partial = partial_path(run_path("foodlog", preset, ds))
        partial.mkdir(parents=True)
        write_config(partial, FOODLOG, preset_named(preset))
        (partial / WEIGHTS).write_bytes(weights or f"{preset} {ds}".encode())
        record = {
            "ds": ds,
            "dataset": "foodlog",
            "preset": preset,
            "seen_days": dict.fromkeys(seen, 7),
            "samples_version": 7,
            "git_sha": CODE,
            "world_size": 1,
            "base_digest": base_digest,
            "lineage": [{"ds": ds, "days": dict.fromkeys(seen, 7), "git_sha": CODE}],
        }
        return publish(partial, record)

    return make


@pytest.fixture
def make_version(make_run: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a run and registers it with its two files, without the code and signature of a real model."""

    def make(
        ds: str,
        seen: Sequence[str],
        preset: str = "tiny",
        candidate: Mapping[str, Any] | None = None,
        champion: Mapping[str, Any] | None = None,
        base_digest: str | None = None,
        weights: bytes = b"",
        **more: Any,
    ) -> tuple[Any, Any]:
        from model.registry import record as run_record
        from model.registry import tracking
        from model.registry import versions as registry
        from model.registry.store import client
        from model.runs.store import CONFIG, WEIGHTS

        run = make_run(ds, seen, preset, weights=weights, base_digest=base_digest)
        evaluation = evaluation_of(run.digest, ds, candidate or {}, champion, preset=preset, **more)
        (run.path / "evaluation.json").write_text(json.dumps(evaluation))
        pass_gate(run)
        run_id = run_record.start(run)
        experiment = tracking.experiment_id("foodlog")
        logged = client().create_logged_model(experiment, name="ranker", tags={"digest": run.digest})
        for name in (CONFIG, WEIGHTS):
            client().log_model_artifact(logged.model_id, str(run.path / name), "artifacts")
        client().finalize_logged_model(logged.model_id, "READY")
        name = registry.create_model("foodlog")
        entry = client().create_model_version(
            name, f"models:/{logged.model_id}", run_id, run_record.tags_of(run), model_id=logged.model_id
        )
        return run, registry.numbered("foodlog", int(entry.version))

    return make
