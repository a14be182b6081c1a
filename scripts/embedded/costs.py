"""What a run costs in processor seconds (user and system), by component and by step.

Seconds on the clock depend on what else a machine does; processor seconds hardly do. The components are
looked at while the run goes on, and a step costs what its own process took (told by the fork server) and what
Spark took between its start and its end: steps that use Spark run one at a time.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import resource
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import time
from typing import Any

import psutil  # type: ignore[import-untyped]

from scripts.embedded.processes import Processes

SPARK, FORKS = "spark", "fork-server"
_EVERY_S = 2.0


class Costs:
    """Looks at the components' processor time every two seconds until it is stopped.

    Args:
        processes: The components.

    Attributes:
        start: Processor seconds until they were up.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._seen: dict[str, list[tuple[float, float]]] = {}
        self.start = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="costs", daemon=True)

    def __enter__(self) -> Costs:
        living = [process.pid for process in self._processes.started.values()]
        self.start = own_total() + sum(map(processor_seconds, living))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            for name, process in list(self._processes.started.items()):
                self._seen.setdefault(name, []).append((time(), processor_seconds(process.pid)))
            if self._stop.wait(_EVERY_S):
                return

    def components(self) -> dict[str, float]:
        """Processor seconds of each component so far."""
        return {name: max(spent for _, spent in seen) for name, seen in self._seen.items()}

    def between(self, name: str, start: float, end: float) -> float:
        """Processor seconds that a component took between two times (seconds since the epoch)."""
        seen = self._seen.get(name, [])
        return max(0.0, _at(seen, end) - _at(seen, start))

    def steps(self, tasks: Sequence[Mapping[str, Any]], log: Path) -> list[dict[str, Any]]:
        """What each task cost.

        Args:
            tasks: As Airflow's API tells them, with `day`, `dag_id`, `task_id`, `start_date` and `end_date`.
            log: The fork server's log, with a line for every step that has ended.
        """
        forks = list(_forks(log))
        told = []
        for task in tasks:
            start, end = (datetime.fromisoformat(task[key]).timestamp() for key in ("start_date", "end_date"))
            own = sum(cost for at, ds, cost in forks if ds == task["day"] and start <= at <= end)
            spark = self.between(SPARK, start, end) if task["dag_id"] == "samples_daily" else 0.0
            told.append(
                {
                    "day": task["day"],
                    "dag": task["dag_id"],
                    "step": task["task_id"],
                    "seconds": round(end - start, 1),
                    "cpu_seconds": round(own + spark, 1),
                }
            )
        return told


def processor_seconds(pid: int) -> float:
    """Processor seconds of a process, of those it has left behind and of its living descendants."""
    total = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
    return total


def own_total() -> float:
    """Processor seconds of this process and of all that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _at(seen: Sequence[tuple[float, float]], when: float) -> float:
    """Processor seconds at a time, on the line between the looks before and after it."""
    place = bisect.bisect(seen, (when, float("inf")))
    if place == 0:
        return 0.0
    if place == len(seen):
        return seen[-1][1]
    (before, low), (after, high) = seen[place - 1], seen[place]
    return low + (high - low) * (when - before) / (after - before)


def _forks(log: Path) -> Iterator[tuple[float, str, float]]:
    """(end, day, processor seconds) of each step that the fork server has run."""
    if not log.exists():
        return
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith('{"step": '):
            step = json.loads(line)
            words = step["step"]
            ds = words[words.index("--ds") + 1] if "--ds" in words[:-1] else ""
            yield step["ended"], ds, step["cpu_seconds"]


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
