"""Runs the daily DAGs for consecutive days and reports: `make run`.

Starts the embedded components, simulates foodlog's raw logs of the days, triggers `samples_daily` for each
day through Airflow's API, waits until the runs of `retraining_daily` that follow are through, prints the
table of days, and stops everything. Run again it does the same days again, which changes nothing: same
tables, same versions. `FROM`, `TO` or `DAYS`, `DATASET` and `DATA`, `CHALLENGERS`, `USERS` say what to
run.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.embedded import report
from scripts.embedded.airflow_api import AirflowApi
from scripts.embedded.clock import print_line
from scripts.embedded.components import DAGS, embedded
from scripts.embedded.costs import FORKS, Costs, own_total, write
from scripts.embedded.days import days_from_environment, seed, simulation
from scripts.embedded.processes import Processes, stop_on_signals
from scripts.embedded.settings import (
    EmbeddedSettings,
    settings_from_environment,
)
from scripts.embedded.watch import Watch
from spark_jobs.contract import command, locations

logger = logging.getLogger(__name__)
PRODUCER, CONSUMER = DAGS


INTERRUPTED = "all components are stopped; run it again to go on"


def run(settings: EmbeddedSettings, days: list[str]) -> tuple[str, Watch]:
    """Runs the days through Airflow.

    Returns:
        The table of days and where to look, and the watch, which knows what failed.

    Raises:
        EmbeddedRunError: A component did not come up or ended.
    """
    meanwhile = simulation(settings, days)
    print_line(
        f"{settings.dataset}, {' and '.join(settings.presets)}, {days[0]} to {days[-1]}: starting components"
    )
    with embedded(settings, "make run", afresh=True, meanwhile=meanwhile) as (processes, api):
        for name, command in seed(settings).items():
            print_line(f"ingesting the {name}")
            processes.run(name.replace(" ", "-"), settings.with_spark(command))
        since = datetime.now(UTC)
        started = {day: api.trigger(PRODUCER, day) for day in days}
        watch = Watch(api, processes, settings, started, since)
        with Costs(processes) as costs:
            seconds = watch.wait(report.load_meanwhile)
            tasks = _tasks(api, started, since)
        logger.info("what it cost, by component and step: %s", _keep(costs, tasks, processes))
        return report_of(settings, seconds, watch.outcomes), watch


def _tasks(api: AirflowApi, started: Mapping[str, str], since: datetime) -> list[dict[str, Any]]:
    """The days' tasks that have run, with their day, in the order of their ends."""
    runs = [(day, PRODUCER, run_id) for day, run_id in started.items()]
    runs += [(run["partition_key"], CONSUMER, run["dag_run_id"]) for run in api.runs(CONSUMER, since)]
    tasks = [{**task, "day": day} for day, dag_id, run_id in runs for task in api.tasks(dag_id, run_id)]
    ended = [task for task in tasks if task["start_date"] and task["end_date"]]
    return sorted(ended, key=lambda task: str(task["end_date"]))


def _keep(costs: Costs, tasks: Sequence[Mapping[str, Any]], processes: Processes) -> Path:
    """Writes what the run has cost so far to `$MTGR_VAR/bench/make_run.json`."""
    path = locations.var() / "bench" / "make_run.json"
    components = {name: round(spent, 1) for name, spent in costs.components().items()}
    record = {
        "cpu_seconds": round(own_total() + sum(costs.components().values()), 1),
        "start_cpu_seconds": round(costs.start, 1),
        "components": components,
        "steps": costs.steps(tasks, processes.log_of(FORKS)),
    }
    write(path, record)
    return path


def report_of(settings: EmbeddedSettings, seconds: Mapping[str, float], outcomes: Mapping[str, str]) -> str:
    """The table of days, and where to look."""
    table = report.table(report.HEADINGS, report.rows(settings, seconds, outcomes))
    return f"\n{table}\n\n{report.where(settings)}"


def print_report(told: str, since: float) -> None:
    """Prints a report, and the time since `since`."""
    print_line(told)
    print_line(f"{'total':<10} {time.monotonic() - since:.0f} s")


def _run(arguments: argparse.Namespace) -> None:
    since = time.monotonic()
    settings = settings_from_environment()
    days = days_from_environment(settings.dataset)
    told, watch = run(settings, days)
    print_report(told, since)
    watch.require_success()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; settings are variables, see `command.run` for the exit codes."""
    stop_on_signals()
    parser = command.parser("scripts.run", __doc__)
    return command.run(parser, _run, argv, for_people=True, interrupted=INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
