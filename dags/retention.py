"""Which of Airflow's logs are old: those of runs in which nothing was written for so many days."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

_RUNS = ("dag_id=*/run_id=*", "dag_processor/[0-9]*")  # of tasks, and of a day of reading DAG files


def remove_old_logs(folder: str, days: int, *, is_dry: bool) -> tuple[int, int]:
    """Removes the folders of old runs, or, `is_dry`, only counts them.

    Args:
        folder: Airflow's folder of logs on this machine.
        days: A run whose newest log is older is old.
        is_dry: Nothing is removed.

    Returns:
        Number of the folders, and their bytes.
    """
    oldest = time.time() - days * 86_400
    number = total = 0
    for run in sorted(path for pattern in _RUNS for path in Path(folder).glob(pattern)):
        files = [path.stat() for path in run.rglob("*") if path.is_file()]
        if max((file.st_mtime for file in files), default=run.stat().st_mtime) < oldest:
            number, total = number + 1, total + sum(file.st_size for file in files)
            if not is_dry:
                shutil.rmtree(run)
    return number, total
