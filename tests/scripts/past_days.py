"""A `var` folder of foodlog with two days done, a third whose gate failed, and none of the fourth."""

import json
import sqlite3
from pathlib import Path

import pyarrow
from deltalake import write_deltalake

from model.config.presets import preset_named
from model.runs.store import write_config
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.lake import verdicts

FOODLOG = dataset_named("foodlog")
DAYS = [f"2026-03-0{number}" for number in (1, 2, 3, 4)]


def write_days(var: Path) -> None:
    """Writes the folder; `MTGR_VAR` names it."""
    for name, column in (("events", "delivery_ds"), ("samples", "ds")):
        for number, day in enumerate(DAYS[:3]):
            rows = pyarrow.table({column: [day] * (number + 2), "x": range(number + 2)})
            write_deltalake(var / "lake/foodlog" / name, rows, partition_by=[column], mode="append")
        verdicts.allow("foodlog", name, DAYS[:2], "a test")
    verdicts.allow("foodlog", "events", DAYS[2:3], "a test")
    verdicts.allow("foodlog", "samples", DAYS[2:3], "")
    write_run(var, "tiny", DAYS[1], DAYS[:1])
    _airflow(
        var / "airflow/airflow.db",
        [
            ("samples_daily", DAYS[0], "success", 60),
            ("samples_daily", DAYS[1], "success", 70),
            ("samples_daily", DAYS[2], "success", 1),  # an older run of the day
            ("samples_daily", DAYS[2], "failed", 40),
            ("retraining_daily", DAYS[0], "success", 2),
            ("retraining_daily", DAYS[1], "success", 20),
        ],
    )


def write_run(var: Path, preset: str, day: str, seen: list[str]) -> None:
    """Writes a run of a day that has seen others."""
    folder = var / "runs/foodlog" / preset / day
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps({"ds": day, "seen_days": dict.fromkeys(seen, 1)}))
    write_config(folder, FOODLOG, preset_named(preset))


def _airflow(path: Path, runs: list[tuple[str, str, str, int]]) -> None:
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE dag_run (dag_id, run_id, partition_key, state, start_date, end_date)"
        )
        connection.execute("CREATE TABLE task_instance (dag_id, run_id, task_id, state)")
        for number, (dag, day, state, seconds) in enumerate(runs):
            times = (
                f"2026-03-05 0{number}:00:00.000000",
                f"2026-03-05 0{number}:{seconds // 60:02}:{seconds % 60:02}",
            )
            connection.execute(
                "INSERT INTO dag_run VALUES (?, ?, ?, ?, ?, ?)", (dag, str(number), day, state, *times)
            )
            if state == "failed":
                connection.execute(
                    "INSERT INTO task_instance VALUES (?, ?, 'gate_samples', ?)", (dag, str(number), state)
                )
    connection.close()
