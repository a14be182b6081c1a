"""Waits for DAG runs and shows what they do: a line for every task that ends, until all days are through.

A day is through when its run of `samples_daily` has ended and, if that published the asset, the run of
`retraining_daily` that the asset started has ended, too. A failed run is shown at once with the end of its
log; the other days go on, as they do in Airflow, and the watch ends with what failed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from scripts.embedded.airflow_api import AirflowApi
from scripts.embedded.clock import clock, print_line
from scripts.embedded.components import DAGS
from scripts.embedded.processes import Processes
from scripts.embedded.settings import EmbeddedRunError, EmbeddedSettings

logger = logging.getLogger(__name__)
PRODUCER, CONSUMER = DAGS
PUBLISHES = "gate_samples"  # the task of the producer that publishes the asset
EMPTY, NO_HISTORY = "no impressions", "no model: nothing to learn from yet"
_ENDED = ("success", "failed")
_POLL_S = 2.0  # an answer costs Airflow tens of milliseconds of a core that steps could use
_POLL_LAST_S = 0.5  # when only the last days train, cores have the time
_HANDOVER_S = 120.0  # how long the asset may take to start its run


class RunFailedError(EmbeddedRunError):
    """DAG runs have failed; the message names them."""


@dataclass
class Watch:
    """Progress of the days.

    Args:
        api: Airflow.
        processes: The components, checked while waiting.
        settings: Of the run.
        producers: Run ids of `samples_daily` by day, in the order in which they are to be reported.
        since: When they were started: earlier runs are not the ones to wait for.

    Attributes:
        failed: Tasks that failed, in words.
        outcomes: By day, which task failed, or why there was nothing to do; a day that went well has none.
    """

    api: AirflowApi
    processes: Processes
    settings: EmbeddedSettings
    producers: Mapping[str, str]
    since: datetime
    _told: set[tuple[str, str, str]] = field(default_factory=set)
    _published: dict[str, bool] = field(default_factory=dict)
    _published_at: dict[str, float] = field(default_factory=dict)
    _running: dict[str, datetime] = field(default_factory=dict)  # task of a day to when it began
    failed: list[str] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)

    def wait(self, when_last_trains: Callable[[], None]) -> dict[str, float]:
        """Waits until all days are through.

        Args:
            when_last_trains: Called once, when `samples_daily` is through with every day: what is left does
                not keep all cores busy.

        Returns:
            Seconds that each day's runs took; `failed` then says which runs have failed.

        Raises:
            EmbeddedRunError: A component ended, or a published day started no run.
        """
        seconds: dict[str, float] = {}
        is_called = False
        while len(seconds) < len(self.producers):
            self.processes.check()
            self._running.clear()
            runs = {run["dag_run_id"]: run for run in self.api.runs(PRODUCER, self.since)}
            consumers = {run["partition_key"]: run for run in self.api.runs(CONSUMER, self.since)}
            for day, run_id in self.producers.items():
                if day not in seconds:
                    taken = self._look(day, runs[run_id], consumers.get(day))
                    if taken is not None:
                        seconds[day] = taken
            if not is_called and len(self._published) == len(self.producers):
                is_called = True
                when_last_trains()
            self._pause(_POLL_LAST_S if is_called else _POLL_S, len(seconds))
        return seconds

    def _pause(self, seconds: float, done: int) -> None:
        """Waits for the next look; meanwhile a terminal shows what runs, and for how long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            now = datetime.now(UTC)
            running = [
                f"{name} {(now - start).total_seconds():.0f} s" for name, start in self._running.items()
            ]
            clock.show(
                f"{done} of {len(self.producers)} days done; {', '.join(running) or 'nothing runs yet'}"
            )
            time.sleep(min(left, 1.0))

    def require_success(self) -> None:
        """Raises `RunFailedError` when a run has failed."""
        if self.failed:
            raise RunFailedError(
                f"failed: {', '.join(self.failed)}; what is published of those days is as it was before. "
                "See docs/operations.md, when a step fails"
            )

    def _look(self, day: str, producer: dict[str, Any], consumer: dict[str, Any] | None) -> float | None:
        """Tells what is new of a day; seconds when it is through, else None."""
        if producer["state"] == "queued":
            return None
        if day not in self._published:
            tasks = self._tell(day, producer)
            if producer["state"] not in _ENDED:
                return None
            done = (task["task_id"] == PUBLISHES and task["state"] == "success" for task in tasks)
            self._published[day] = any(done)
        taken = _seconds(producer)
        if not self._published[day]:
            return taken
        if consumer is None:
            published = self._published_at.setdefault(day, time.monotonic())
            if time.monotonic() - published > _HANDOVER_S:
                raise EmbeddedRunError(f"{day} was published, but {CONSUMER} has not started: is it paused?")
            return None
        if consumer["state"] == "queued":
            return None
        self._tell(day, consumer)
        return taken + _seconds(consumer) if consumer["state"] in _ENDED else None

    def _tell(self, day: str, run: dict[str, Any]) -> list[dict[str, Any]]:
        """Prints the tasks that have ended since the last look, and the end of the log of one that failed."""
        dag_id, run_id = run["dag_id"], run["dag_run_id"]
        tasks = self.api.tasks(dag_id, run_id)
        for task in sorted(tasks, key=lambda task: str(task["end_date"])):
            if task["state"] == "running":
                self._running[f"{day} {task['task_id']}"] = _time(task["start_date"])
            key = (run_id, task["task_id"], f"{task['state']} {task['try_number']}")
            if task["state"] in ("success", "failed", "up_for_retry") and key not in self._told:
                self._told.add(key)
                seconds = f"{task['duration'] or 0:5.1f} s"
                print_line(f"{day}  {dag_id:<17} {task['task_id']:<16} {task['state']:<12} {seconds}")
                if task["state"] == "failed":
                    self.failed.append(f"{dag_id}.{task['task_id']} of {day}")
                    self.outcomes[day] = f"{task['task_id']} failed"
                    print_line(self._failure(day, dag_id, run_id, task))
        skipped = [task["task_id"] for task in tasks if task["state"] == "skipped"]
        if skipped and run["state"] in _ENDED:
            self.outcomes.setdefault(day, EMPTY if PUBLISHES in skipped else NO_HISTORY)
            print_line(f"{day}  {dag_id:<17} skipped: {', '.join(skipped)}")
        return tasks

    def _failure(self, day: str, dag_id: str, run_id: str, task: dict[str, Any]) -> str:
        folder = self.settings.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"
        lines = self.api.log(dag_id, run_id, task["task_id"], task["try_number"])
        return "\n".join(
            [
                f"{dag_id}.{task['task_id']} of {day} failed (try {task['try_number']}):",
                *(f"  {line}" for line in lines[-15:]),
                f"  (log: {folder / ('task_id=' + task['task_id'])})",
            ]
        )


def _seconds(run: dict[str, Any]) -> float:
    return (_time(run["end_date"]) - _time(run["start_date"])).total_seconds()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
