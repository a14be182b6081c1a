"""What a training takes of the machine while it runs: curves that MLflow shows among system metrics.

MLflow's own monitor writes into a run, and there is none before a training has ended: it is named by what
was trained. So its measurements are taken here and logged with the run.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

import psutil  # type: ignore[import-untyped]
import torch

_POINTS = 200  # more are thinned out: half of them go, and the next ones are taken half as often


class Machine:
    """Measures from when it is entered to when it is left, as a context manager.

    Args:
        every_s: Seconds between the first measurements.
    """

    def __init__(self, every_s: float = 1.0) -> None:
        self.points: dict[int, dict[str, float]] = {}
        self._every_s, self._start = every_s, time.time()
        self._process = psutil.Process()
        self._done, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="machine", daemon=True)

    def __enter__(self) -> Self:
        psutil.cpu_percent()  # measures from one call to the next: the first says nothing
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def measure(self) -> None:
        """Takes a measurement; its step is milliseconds since the start."""
        with self._lock:
            memory = psutil.virtual_memory()
            values = {  # named as by MLflow's monitor
                "cpu_utilization_percentage": psutil.cpu_percent(),
                "system_memory_usage_megabytes": memory.used / 1e6,
                "system_memory_usage_percentage": memory.used / memory.total * 100,
                "process_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
            }
            if torch.cuda.is_available():
                values["gpu_memory_allocated_megabytes"] = torch.cuda.memory_allocated() / 1e6
            self.points[int(1000 * (time.time() - self._start))] = values
            if len(self.points) > _POINTS:
                self.points = dict(list(self.points.items())[::2])
                self._every_s *= 2

    def curves(self) -> tuple[dict[str, list[tuple[int, float]]], dict[int, int]]:
        """Of each metric its steps and values, and of each step when it was, in milliseconds."""
        self.measure()
        with self._lock:
            points = dict(self.points)
        curves = {
            f"system/{name}": [(step, values[name]) for step, values in points.items()]
            for name in next(iter(points.values()))
        }
        return curves, {step: int(1000 * self._start) + step for step in points}

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.measure()
