"""Earlier runs, as Airflow's SQLite file tells them: read without Airflow, which takes seconds to import."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_NEWEST = """
SELECT dag_id, partition_key, state, start_date, end_date, run_id FROM dag_run
WHERE partition_key IS NOT NULL ORDER BY start_date IS NULL DESC, start_date
"""


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """A run of a DAG.

    Args:
        dag_id: The DAG.
        ds: Its day.
        state: Airflow's: `queued`, `running`, `success`, `failed`.
        seconds: How long it took; None where it has not ended.
        failed: Tasks that failed.
    """

    dag_id: str
    ds: str
    state: str
    seconds: float | None
    failed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.state} ({', '.join(self.failed)})" if self.failed else self.state


def past_runs(database: Path | None) -> Mapping[tuple[str, str], PastRun]:
    """The newest run of each DAG and day, by both; of equals the later, as a backfill takes them.

    Args:
        database: Airflow's SQLite file; None where there is none yet.
    """
    if database is None:
        return {}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        runs = connection.execute(_NEWEST).fetchall()
        tasks = connection.execute("SELECT run_id, dag_id, task_id FROM task_instance WHERE state = 'failed'")
        failed: dict[tuple[str, str], list[str]] = {}
        for run_id, dag_id, task_id in tasks:
            failed.setdefault((dag_id, run_id), []).append(task_id)
    return {
        (dag_id, ds): PastRun(
            dag_id=dag_id,
            ds=ds,
            state=state,
            seconds=_seconds(start, end),
            failed=tuple(failed.get((dag_id, run_id), ())),
        )
        for dag_id, ds, state, start, end, run_id in runs
    }


def _seconds(start: str | None, end: str | None) -> float | None:
    if not (start and end):
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
