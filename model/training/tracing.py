"""A trace of some steps, which https://ui.perfetto.dev opens: what the threads and the GPU did when."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, schedule

from spark_jobs.contract.command import CommandError

logger = logging.getLogger(__name__)

_SKIPPED, _WARM, _TRACED = 3, 1, 4  # steps


@contextlib.contextmanager
def traced(path: Path | None, device: torch.device) -> Iterator[Callable[[], None]]:
    """What to call after each step, so that rank 0 writes a trace of four steps after the first four.

    Args:
        path: File to write; None traces nothing.
        device: Where steps are taken.

    Raises:
        CommandError: There were too few steps.
    """
    if path is None or dist.get_rank():
        yield lambda: None
        return
    written: list[Path] = []

    def write(profiler: profile) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
        written.append(path)
        logger.info("wrote a trace of %d steps to %s; open it at https://ui.perfetto.dev", _TRACED, path)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    steps = schedule(wait=_SKIPPED, warmup=_WARM, active=_TRACED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step
    if not written:
        raise CommandError(
            f"no trace was written to {path}: there were fewer than {_SKIPPED + _WARM + _TRACED} steps; "
            "train on more days, or lower batch_tokens"
        )
