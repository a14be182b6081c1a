"""MLflow's pages say what is so: datasets, source, series by day, who serves and why, how to load it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from model import promote, register, rollback
from model.config.presets import preset_named
from model.registry import inputs, machine, packaging, pages, tracking
from model.registry import record as run_record
from model.registry import versions as registry
from model.registry.store import client
from model.runs.store import Run
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.conftest import CODE, evaluation_of, pass_gate
from tests.model.test_register_command import upload

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")


@pytest.fixture
def registered(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Runs of two days, evaluated and registered, with the upload of code left out."""
    monkeypatch.setattr(packaging, "log_model", upload)
    runs = []
    for place in (1, 2):
        run = make_run(DAYS[place], DAYS[:place])
        champion = {"version": 1, "digest": runs[0].digest, "ctcvr_gauc": 0.61} if runs else None
        mine = {"ctcvr_gauc": 0.62 + place / 100, "ctcvr_gauc_low": 0.6, "ctcvr_gauc_high": 0.7}
        evaluation = evaluation_of(run.digest, run.ds, mine, champion, candidates=16321)
        (run.path / "evaluation.json").write_text(json.dumps(evaluation))
        pass_gate(run)
        register.register(FOODLOG, run)
        runs.append(run)
    return runs


def mlflow_run(run: Run) -> Any:
    found = tracking.find_run("foodlog", "tiny", run.ds, run.digest)
    assert found is not None
    return found


def tags_of(entry: Any) -> dict[str, str]:
    return {tag.key: tag.value for tag in entry.tags}


def test_the_experiment_is_of_the_kind_of_training_runs_with_a_view_of_what_decides(
    registered: list[Run],
) -> None:
    experiment = client().get_experiment(tracking.experiment_id("foodlog"))
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    text = experiment.tags["mlflow.note.content"]
    assert text.startswith("Nothing serves yet. [Runs by GAUC](#/experiments/")
    assert "newest day 2026-03-03" in text
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{tracking.VIEW}"])
    shown = re.findall(r"metrics\.`(\w+)`", " ".join(view["selectedColumns"]))
    known = set(mlflow_run(registered[1]).data.metrics)
    assert {"ctcvr_gauc", "champion_ctcvr_gauc"} <= set(shown)
    assert set(shown) <= known
    assert f"viewStateShareKey={tracking.VIEW}" in text
    assert "workflowType=machine_learning" in text


def test_a_run_says_what_it_has_read_and_from_which_code(registered: list[Run]) -> None:
    run = mlflow_run(registered[1])
    inputs = {tags_of(entry)["mlflow.data.context"]: entry.dataset for entry in run.inputs.dataset_inputs}
    assert {kind: entry.name for kind, entry in inputs.items()} == {
        "training": "foodlog samples 2026-03-01..2026-03-02",
        "evaluation": "foodlog samples 2026-03-03",
    }
    source = json.loads(inputs["training"].source)
    assert source["path"].endswith("/lake/foodlog/samples")
    assert source["delta_table_version"] == 7
    assert inputs["training"].source_type == "delta_table"
    assert json.loads(inputs["evaluation"].profile) == {"num_elements": 16321}
    assert run.data.tags["mlflow.source.name"] == "model.train"
    assert run.data.tags["mlflow.source.git.commit"] == CODE
    assert run.data.tags["mlflow.source.git.dirty"] == "False"


def test_a_long_training_is_measured_over_all_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_POINTS", 8)
    now = iter(range(1000))
    monkeypatch.setattr(machine.time, "time", lambda: float(next(now)))
    watched = machine.Machine(every_s=1.0)
    for _ in range(60):
        watched.measure()
    steps = list(watched.points)
    assert len(steps) <= 8
    assert steps[0] == 1000
    assert max(steps) > 50_000


@pytest.mark.usefixtures("var")
def test_a_training_says_its_rows_and_what_it_took_of_the_machine() -> None:
    record = {
        "ds": "2026-03-02", "dataset": "foodlog", "preset": "tiny", "seen_days": {DAYS[0]: 3},
        "world_size": 1,
        "samples_version": 3, "git_sha": f"{CODE}+dirty", "num_steps": 2, "losses": [("a", 0.5), ("b", 0.4)],
        "seconds": 2.0, "tokens": 500, "rows": {DAYS[0]: 571},
        "lineage": [{"ds": "2026-03-02", "days": {DAYS[0]: 3}, "samples_table": "b5e2"}],
    }  # fmt: skip
    config = preset_named("tiny").sized(FOODLOG)
    with machine.Machine(every_s=0.001) as watched:
        while len(watched.points) < 5:
            time.sleep(0.001)
        run = client().get_run(run_record.log_training(config, record, "d" * 64, watched))
    (read,) = run.inputs.dataset_inputs
    assert json.loads(read.dataset.profile) == {"num_rows": 571}
    assert (tags_of(read)["table"], tags_of(read)["versions"]) == ("b5e2", "3")
    assert run.data.metrics["system/tokens_per_second"] == 250.0
    assert run.data.metrics["system/process_memory_megabytes"] > 50
    assert run.data.tags["mlflow.source.git.commit"] == CODE
    curve = client().get_metric_history(run.info.run_id, "system/process_memory_usage_megabytes")
    assert len({point.timestamp - point.step for point in curve}) == 1 < 5 <= len(curve)
    assert all(point.value > 50 for point in curve)
    busy = client().get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
    assert sum(point.value for point in busy) > 0
    assert run.data.tags["mlflow.source.git.dirty"] == "True"
    names = list(run.data.params)
    assert names[:3] == ["model.architecture", "model.d_model", "model.max_static"]
    assert names.index("train.dense_lr") < names.index("train.weight_decay") < names.index("world_size")
    assert all(".tables." in name for name in names[names.index("world_size") + 1 :])
    assert any(".tables." in name for name in names)


def test_days_with_many_holes_fit_into_what_mlflow_takes() -> None:
    days = {shift_day("2024-01-01", 2 * place): place for place in range(300)}
    record = {"dataset": "foodlog", "lineage": [{"days": days, "samples_table": "b5e2"}]}
    read = inputs.trained_on(record)
    assert read.dataset.name == "foodlog samples 300 days from 2024-01-01 to 2025-08-21"
    assert tags_of(read)["versions"] == "0..299"
    assert json.loads(read.dataset.source)["delta_table_version"] == 299
    assert read.dataset.profile is None


def test_gauc_by_day_stands_beside_the_champions_at_its_days(registered: list[Run]) -> None:
    run_id = mlflow_run(registered[1]).info.run_id

    def series(who: str) -> list[tuple[int, str, float]]:
        history = client().get_metric_history(run_id, f"ctcvr_gauc_by_day/{who}")
        return [
            (m.step, f"{datetime.fromtimestamp(m.timestamp / 1000, UTC):%Y-%m-%d}", m.value) for m in history
        ]

    assert series("candidate") == [(1, "2026-03-02", 0.63), (2, "2026-03-03", 0.64)]
    assert series("champion") == [(2, "2026-03-03", 0.61)]


def test_the_first_page_of_a_run_has_its_chart_then_the_decision(registered: list[Run]) -> None:
    run = mlflow_run(registered[0])
    text = run.data.tags["mlflow.note.content"]
    chart, _, decision, _, links = text.splitlines()
    assert chart == (f"![CTCVR GAUC: tiny 0.6300](get-artifact?path=overview.svg&run_uuid={run.info.run_id})")
    assert decision == "**Not decided yet.**"
    paths = [entry.path for entry in client().list_artifacts(run.info.run_id)]
    assert "overview.svg" in paths
    assert not any(path.startswith("plots") for path in paths)
    promote.promote(FOODLOG, registered[:1])
    run = mlflow_run(registered[0])
    _, _, decision, _, links = run.data.tags["mlflow.note.content"].splitlines()
    assert decision.startswith("**Promoted to champion**: ctcvr_gauc 0.6300, with no champion to beat")
    assert f"runs/{run.info.run_id}/artifacts/report.html" in links
    assert "(#/models/mtgr-foodlog/versions/1)" in links
    assert run.data.tags["decision"] == "promoted"


def model_text() -> str:
    return str(client().get_registered_model("mtgr-foodlog").description)


def test_the_models_page_says_who_serves_since_when_why_and_after_whom(registered: list[Run]) -> None:
    assert "**Nothing serves yet**" in model_text()
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    promote.promote(FOODLOG, registered[:1])
    first = model_text()
    assert "**[Version 1](#/models/mtgr-foodlog/versions/1) serves** (alias `champion`) since " in first
    since = re.search(r"since (\S+ \S+) UTC", first)
    assert since is not None
    assert before <= datetime.strptime(since.group(1), "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert "Why: **Promoted to champion**: ctcvr_gauc 0.6300" in first
    assert "It replaced nothing, it is the first champion." in first
    promote.promote(FOODLOG, registered[1:])
    second = model_text()
    assert "**[Version 2]" in second
    assert "It replaced version 1." in second
    promote.promote(FOODLOG, registered[1:])  # again: nothing changes, the time it serves since neither
    assert model_text() == second
    rollback.rollback("foodlog")
    assert "**[Version 1]" in model_text()
    assert "Why: restored by a rollback, after version 2." in model_text()
    assert "It replaced version 2." in model_text()
    experiment = client().get_experiment(tracking.experiment_id("foodlog"))
    assert experiment.tags["mlflow.note.content"].startswith("**Champion: [version 1]")


def test_the_three_lines_load_the_champion(registered: list[Run]) -> None:
    """They are Python, and name the alias that is set; a real model is loaded by the tests of serving."""
    promote.promote(FOODLOG, registered[:1])
    (code,) = re.findall(r"```python\n(.*?)```", model_text(), re.S)
    assert len(code.strip().splitlines()) == 3
    compile(code, "page", "exec")
    (uri,) = re.findall(r'"models:/(.*?)"', code)
    name, alias = uri.split("@")
    assert client().get_model_version_by_alias(name, alias).version == 1


@pytest.mark.usefixtures("registered")
def test_a_champion_of_before_there_were_times_has_an_unknown_one() -> None:
    version = registry.numbered("foodlog", 1)
    with registry.exclusive("foodlog", "test"):
        client().set_registered_model_alias(version.model, registry.CHAMPION, "1")
        pages.refresh("foodlog")
    assert "since an unknown time" in model_text()
