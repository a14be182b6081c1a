"""What the DAGs are: tasks and their order, schedule, pools, retries, and what a task may not do."""

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EDGES = {
    "samples_daily": [
        ("ingest", "gate_events"),
        ("gate_events", "build_samples"),
        ("build_samples", "gate_samples"),
    ],
    "retraining_daily": [
        ("has_history", "train"),
        ("train", "evaluate"),
        ("evaluate", "gate_evaluation"),
        ("gate_evaluation", "register"),
        ("register", "promote"),
        ("promote", "publish"),
    ],
    "serving_daily": [
        ("is_newest", "build_lookups"),
        ("build_lookups", "publish_lookups"),
    ],
}
GATES = {"gate_events", "gate_samples", "gate_evaluation"}


def test_the_dags_load_and_nothing_else(dags):
    assert sorted(dags) == ["maintenance_weekly", "retraining_daily", "samples_daily", "serving_daily"]


def test_maintenance_is_weekly_its_tasks_do_not_wait_for_each_other_and_it_can_be_tried_dry(dags):
    dag = dags["maintenance_weekly"]
    assert {task.task_id: list(task.downstream_task_ids) for task in dag.tasks} == {
        "tables": [],
        "models": [],
        "logs": [],
    }
    assert dag.timetable.expression == "0 4 * * 1"
    assert dag.catchup is False
    assert dag.has_on_failure_callback
    assert dag.params["dry_run"] is False
    asked = {
        task.task_id: task.bash_command.partition("{{")[0] for task in dag.tasks if task.task_id != "logs"
    }
    assert asked["tables"].endswith("-m spark_jobs.maintain --dataset foodlog --budget 0 ")
    assert asked["models"].endswith("-m model.prune --dataset foodlog --keep 30 --budget 0 ")
    assert dag.get_task("models").pool == "training"
    assert all(task.execution_timeout is not None for task in dag.tasks)


def test_logs_of_old_runs_are_removed_and_dry_only_counted(tmp_path):
    from dags.retention import remove_old_logs

    def log(name, age_days):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
        then = time.time() - age_days * 86_400
        os.utime(path, (then, then))
        return path

    old = log("dag_id=a/run_id=1/task_id=t/attempt=1.log", 31)
    half = log("dag_id=a/run_id=2/task_id=t/attempt=1.log", 31)
    log("dag_id=a/run_id=2/task_id=t/attempt=2.log", 1)  # its run went on
    new = log("dag_id=a/run_id=3/task_id=t/attempt=1.log", 29)
    parsed = log("dag_processor/2026-03-01/dags.log", 40)
    kept = log("components/spark.log", 99)
    assert remove_old_logs(str(tmp_path), 30, is_dry=True) == (2, 20)
    assert old.exists()
    assert remove_old_logs(str(tmp_path), 30, is_dry=False) == (2, 20)
    assert [path.exists() for path in (old, half, new, parsed, kept)] == [False, True, True, False, True]
    assert remove_old_logs(str(tmp_path), 30, is_dry=False) == (0, 0)


@pytest.mark.usefixtures("airflow_home")
def test_a_wrong_number_is_what_airflow_shows_as_import_error(monkeypatch):
    from airflow.dag_processing.dagbag import DagBag

    for name in [name for name in sys.modules if name.partition(".")[0] == "dags"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("MTGR_RETRIES", "two")
    errors = DagBag(str(ROOT / "dags")).import_errors
    assert sorted(Path(file).stem for file in errors) == [
        "maintenance_weekly",
        "retraining_daily",
        "samples_daily",
        "serving_daily",
    ]
    last = {error.strip().splitlines()[-1].partition(": ")[2] for error in errors.values()}
    assert last == {"MTGR_RETRIES=two is not a whole number from 0 to 100"}


@pytest.mark.parametrize("dag_id", EDGES)
def test_tasks_and_their_order(dags, dag_id):
    edges = [(task.task_id, other) for task in dags[dag_id].tasks for other in task.downstream_task_ids]
    assert sorted(edges) == sorted(EDGES[dag_id])


@pytest.mark.parametrize("dag_id", EDGES)
def test_every_dag_runs_one_day_at_a_time_and_never_catches_up(dags, dag_id):
    dag = dags[dag_id]
    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.deadline
    assert dag.has_on_failure_callback


@pytest.mark.parametrize(
    ("dag_id", "hours"), [("samples_daily", 4), ("retraining_daily", 12), ("serving_daily", 6)]
)
def test_a_deadline_is_stored_so_that_a_task_of_its_run_can_be_cleared(dags, dag_id, hours):
    from airflow.serialization.decoders import decode_deadline_alert
    from airflow.serialization.encoders import encode_deadline_alert

    (alert,) = dags[dag_id].deadline
    stored = encode_deadline_alert(alert)
    assert decode_deadline_alert(stored).interval == timedelta(hours=hours)
    # What Airflow 3.3 does with the stored value when a run that has ended is queued again.
    assert timedelta(seconds=stored["interval"]) == timedelta(hours=hours)


@pytest.mark.parametrize("dag_id", EDGES)
def test_a_failure_always_reaches_the_run(dags, dag_id):
    # A leaf with another trigger rule would make a run with a failed gate a successful one.
    assert {task.trigger_rule for task in dags[dag_id].tasks} == {"all_success"}


@pytest.mark.parametrize("dag_id", EDGES)
def test_only_gates_are_not_retried_and_every_task_has_a_timeout(dags, dag_id):
    for task in dags[dag_id].tasks:
        assert (task.retries == 0) == (task.task_id in GATES), task.task_id
        assert task.execution_timeout is not None, task.task_id


@pytest.mark.parametrize("dag_id", EDGES)
def test_steps_run_in_the_repository_with_its_environment_and_know_no_skip_code(dags, dag_id):
    steps = [task for task in dags[dag_id].tasks if task.task_id not in ("has_history", "is_newest")]
    for task in steps:
        assert task.cwd == str(ROOT)
        assert task.append_env is True
        assert task.skip_on_exit_code == []  # 99 would be "skipped": a failing gate could pass
        assert f"{'day_after' if dag_id == 'serving_daily' else 'day'}(partition_key)" in task.bash_command


def test_what_is_served_tomorrow_is_built_and_published_for_the_newest_day(dags, tmp_path, monkeypatch):
    from dags.steps import day_after
    from spark_jobs.lake import log

    assert day_after("2026-02-28") == "2026-03-01"
    dag = dags["serving_daily"]
    commands = [dag.get_task(name).bash_command for name in ("build_lookups", "publish_lookups")]
    assert dag.is_paused_upon_creation is False  # MTGR_SCHEDULED is not 0 here
    asked = "{{ day_after(partition_key) }}"
    assert commands[0].endswith(f"-m spark_jobs.build_lookups --dataset foodlog --ds {asked}")
    assert commands[1].endswith(f"-m model.publish --dataset foodlog --lookups {asked}")
    assert dag.timetable.asset_condition == dags["retraining_daily"].timetable.asset_condition
    monkeypatch.setattr(log, "partition_values", lambda uri, name: ["2026-03-02", "2026-03-03"])
    is_newest = dag.get_task("is_newest").python_callable
    assert [is_newest(f"2026-03-0{day}") for day in (2, 3)] == [False, True]


def test_the_gate_of_samples_publishes_the_asset_that_retraining_waits_for(dags):
    outlets = {task.task_id: task.outlets for task in dags["samples_daily"].tasks if task.outlets}
    assert list(outlets) == ["gate_samples"]
    assert outlets["gate_samples"] == [dags["retraining_daily"].timetable.asset_condition]


def test_what_uses_the_device_has_a_pool_of_its_own(dags):
    pools = {task.task_id: task.pool for task in dags["retraining_daily"].tasks}
    assert {name for name, pool in pools.items() if pool == "training"} == {"train", "evaluate"}
    assert {task.queue for dag in dags.values() for task in dag.tasks} == {"default"}


def test_a_queue_of_its_own_is_given_to_what_uses_the_device(airflow_home):
    from dags.steps import StepOperator, on_device

    def task(name, queue):
        return StepOperator(task_id=name, module="model.train", **on_device(queue))

    assert (task("a", "gpu").queue, task("a", "gpu").pool) == ("gpu", "training")
    assert (task("b", "").queue, task("b", "").pool) == ("default", "training")


def test_every_step_of_a_day_takes_the_presets_that_were_trained(dags):
    commands = {
        t.task_id: t.bash_command for t in dags["retraining_daily"].tasks if t.task_id != "has_history"
    }
    assert commands.pop("train").endswith("--preset tiny user_tower champion")
    assert commands.pop("publish").endswith(
        "-m model.publish --dataset foodlog --ds {{ day(partition_key) }}"
    )
    trained = "--preset {{ ti.xcom_pull(task_ids='train')['presets'] | join(' ') }}"
    assert {name for name, command in commands.items() if command.endswith(trained)} == set(commands)


@pytest.mark.parametrize(
    ("challengers", "preset", "expected"),
    [
        ("", "", ("tiny", "user_tower")),
        ("", "small", ("small",)),
        ("small tiny small", "", ("small", "tiny")),
        ("small", "tiny", "give one of the two"),
        ("tiny;rm", "", "'tiny;rm' is no preset"),
    ],
)
def test_challengers_are_a_list_and_a_preset_is_one_of_one(airflow_home, challengers, preset, expected):
    from dags.settings import presets
    from spark_jobs.contract.command import UsageError

    if isinstance(expected, tuple):
        assert presets(challengers, preset) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            presets(challengers, preset)


def _infos(timetable, first: datetime, last: datetime):
    from airflow.serialization.decoders import decode_timetable
    from airflow.serialization.encoders import encode_timetable

    core = decode_timetable(encode_timetable(timetable))
    return list(core.iter_partition_dagrun_infos(earliest=first, latest=last))


@pytest.mark.parametrize(
    ("first", "days"),
    [
        ("2026-03-27", ["2026-03-27", "2026-03-28", "2026-03-29", "2026-03-30"]),  # Europe's 23-hour day
        ("2026-10-24", ["2026-10-24", "2026-10-25", "2026-10-26"]),  # its 25-hour day
        ("2028-02-28", ["2028-02-28", "2028-02-29", "2028-03-01"]),
        ("2026-12-31", ["2026-12-31", "2027-01-01"]),  # both lie in ISO week 2026-W53
    ],
)
def test_every_calendar_day_has_exactly_one_run(dags, first, days):
    start = datetime.fromisoformat(first).replace(tzinfo=UTC)
    end = datetime.fromisoformat(days[-1]).replace(tzinfo=UTC) + timedelta(hours=23, minutes=59)
    infos = _infos(dags["samples_daily"].timetable, start, end)
    assert [info.partition_key for info in infos] == days
    ticks = [info.partition_date for info in infos]
    assert {(b - a).total_seconds() for a, b in itertools.pairwise(ticks)} == {24 * 3600}


@pytest.mark.parametrize(
    ("dataset", "cron", "offset"),
    [("foodlog", "30 2 * * *", -1), ("kuairand", "30 18 * * *", 0), ("nepal", "45 20 * * *", 0)],
)
def test_a_run_starts_when_the_attribution_window_has_closed(
    airflow_home, monkeypatch, dataset, cron, offset
):
    from dags import steps
    from spark_jobs.contract import datasets
    from spark_jobs.contract.datasets import dataset_named

    foodlog = dataset_named("foodlog")
    nepal = dataclasses.replace(foodlog, name="nepal", utc_offset_hours=5.75)
    monkeypatch.setitem(datasets.DATASETS, "nepal", nepal)
    monkeypatch.setattr(steps, "DATASET", dataset)
    assert steps.schedule() == (cron, offset)
    minute, hour = (int(part) for part in cron.split()[:2])
    starts = datetime(2026, 3, 1, hour, minute, tzinfo=UTC) - timedelta(days=offset)  # run of day 2026-03-01
    known = dataset_named(dataset)
    day_ends = datetime(2026, 3, 2, tzinfo=UTC) - timedelta(hours=known.utc_offset_hours)
    assert starts - day_ends == timedelta(milliseconds=known.attribution_ms, minutes=30)


def test_importing_the_dags_is_light():
    # What the DAG files add to what Airflow's own authoring interface imports; and no connection is opened.
    code = """
import socket, sys
from airflow.sdk import DAG
from airflow.providers.standard.operators.bash import BashOperator
before = set(sys.modules)
def refuse(*args, **kwargs): raise AssertionError("a connection at import")
socket.socket.connect = refuse
import dags.samples_daily, dags.retraining_daily, dags.maintenance_weekly, dags.serving_daily
new = {name.split(".")[0] for name in set(sys.modules) - before}
heavy = new & {"torch", "pyspark", "mlflow", "great_expectations", "pandas", "numpy", "deltalake", "pyarrow"}
print(sorted(heavy))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_dag_files_are_thin():
    for name in ("samples_daily", "retraining_daily", "maintenance_weekly", "serving_daily"):
        assert len((ROOT / "dags" / f"{name}.py").read_text().splitlines()) <= 110
