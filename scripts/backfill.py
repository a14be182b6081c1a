"""Runs a window of past days through Airflow's own backfill, oldest first: `make backfill FROM=... TO=...`.

`REPROCESS` says what happens to days that have a run already: `none` leaves them (the default), `failed`
repeats those that failed, `completed` repeats all. A backfill that has completed is not one that succeeded,
and it covers `samples_daily` only: the states of its runs are read, then the runs of `retraining_daily` that
the days start are waited for. `SIMULATE=1` simulates the raw logs of the days first. `PLAN=1` starts nothing
and changes nothing: it lists the days, what there is of them and what would be done.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from scripts.embedded import report
from scripts.embedded.airflow_api import AirflowApi
from scripts.embedded.clock import print_line
from scripts.embedded.components import DAGS, embedded
from scripts.embedded.days import days_from_environment, simulation
from scripts.embedded.processes import Processes, stop_on_signals
from scripts.embedded.settings import (
    EmbeddedRunError,
    EmbeddedSettings,
    is_plan,
    reprocess,
    settings_from_environment,
    simulation_asked_for,
)
from scripts.embedded.watch import Watch
from scripts.run import INTERRUPTED, print_report, report_of
from spark_jobs.contract import command
from spark_jobs.contract.command import UsageError

logger = logging.getLogger(__name__)
PRODUCER = DAGS[0]
REPROCESS = ("none", "failed", "completed")
_CREATED_S = 60.0


def backfill(settings: EmbeddedSettings, days: list[str], reprocess: str) -> tuple[str, Watch]:
    """Backfills the days.

    Returns:
        The table of days, those left alone excepted, and where to look; the watch, which knows what failed.

    Raises:
        EmbeddedRunError: Airflow refused it, or a component ended.
    """
    meanwhile = simulation(settings, days) if simulation_asked_for()[0] else {}
    print_line(f"{settings.dataset}: backfill of {days[0]} to {days[-1]}, reprocess {reprocess}")
    with embedded(settings, "make backfill", afresh=True, meanwhile=meanwhile) as (processes, api):
        since = datetime.now(UTC)
        number = create(api, days, reprocess)
        started = runs_of(api, processes, number, days, since)
        for day in days:
            if day not in started:
                print_line(f"{day}  {PRODUCER:<17} has a run already: left alone (REPROCESS={reprocess})")
        watch = Watch(api, processes, settings, started, since)
        seconds = watch.wait(report.load_meanwhile)
        _wait_completed(api, processes, number)
        return report_of(settings, seconds, watch.outcomes), watch


def create(api: AirflowApi, days: list[str], reprocess: str) -> int:
    """Creates the backfill and returns its number.

    Raises:
        EmbeddedRunError: Airflow refused it, e.g. because another one is running.
    """
    body = {
        "dag_id": PRODUCER,
        "from_date": f"{days[0]}T00:00:00Z",
        "to_date": f"{days[-1]}T23:59:59Z",  # the ticks of the schedule lie within the day
        "max_active_runs": 1,
        "run_backwards": False,
        "reprocess_behavior": reprocess,
    }
    return int(api.call("POST", "/backfills", body)["id"])


def runs_of(
    api: AirflowApi, processes: Processes, number: int, days: list[str], since: datetime
) -> dict[str, str]:
    """Ids of the runs that the backfill has made, by day, oldest first; without the days left alone."""
    end = time.monotonic() + _CREATED_S
    while True:
        processes.check()
        by_day = {
            run["partition_key"]: run["dag_run_id"]
            for run in api.runs(PRODUCER, since)
            if run["run_type"] == "backfill"
        }
        if len(by_day) == len(days) or time.monotonic() > end or _completed(api, number):
            return {day: by_day[day] for day in days if day in by_day}
        time.sleep(1)


def _completed(api: AirflowApi, number: int) -> bool:
    return api.call("GET", f"/backfills/{number}")["completed_at"] is not None


def _wait_completed(api: AirflowApi, processes: Processes, number: int) -> None:
    end = time.monotonic() + _CREATED_S
    while not _completed(api, number):
        processes.check()
        if time.monotonic() > end:
            raise EmbeddedRunError(
                f"backfill {number} is not completed, though all of its runs are: see `make ui`"
            )
        time.sleep(1)


def _run(arguments: argparse.Namespace) -> None:
    since = time.monotonic()
    settings = settings_from_environment()
    days = days_from_environment(settings.dataset, required=True)
    wish = reprocess()
    if wish not in REPROCESS:
        raise UsageError(f"REPROCESS={wish} is none of {', '.join(REPROCESS)}")
    if is_plan():
        from scripts.embedded import plan

        simulates = bool(simulation_asked_for()[0])
        print_line(plan.told(settings, *plan.plan(settings, days, wish), wish, simulates))
        return
    told, watch = backfill(settings, days, wish)
    print_report(told, since)
    watch.require_success()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; settings are variables, see `command.run` for the exit codes."""
    stop_on_signals()
    parser = command.parser("scripts.backfill", __doc__)
    return command.run(parser, _run, argv, for_people=True, interrupted=INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
