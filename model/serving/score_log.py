"""What was asked and what was answered, as Parquet files that the pipeline reads back.

    <folder>/ds=2026-03-03/<time>-<process>-<number>.parquet

One row a request: `time_ms`, `version`, `user_id`, `window_start_ms`, and a value a candidate of `item_id`,
`ctr`, `ctcvr`. A file is written when it has enough rows or is old enough, beside its place and then renamed:
a reader never sees half of one. A process that is killed loses what it did not write yet, some seconds. Days
before the last `KEEP_DAYS` are removed.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

KEEP_DAYS = 30
SCHEMA = pa.schema(
    [
        ("time_ms", pa.int64()),
        ("version", pa.int64()),
        ("user_id", pa.int64()),
        ("window_start_ms", pa.int64()),
        ("item_id", pa.list_(pa.int64())),
        ("ctr", pa.list_(pa.float32())),
        ("ctcvr", pa.list_(pa.float32())),
    ]
)


class ScoreLog:
    """Collects rows and writes them from a thread of its own.

    Args:
        folder: Of the files.
        max_rows: A file has no more.
        max_s: A row waits no longer.
    """

    def __init__(self, folder: Path, *, max_rows: int = 20_000, max_s: float = 5.0) -> None:
        self._folder, self._max_rows, self._max_s = folder, max_rows, max_s
        self._rows: list[tuple[Any, ...]] = []
        self._lock = threading.Lock()
        self._wanted, self._ended = threading.Event(), threading.Event()
        self._number = 0
        self._thread = threading.Thread(target=self._write_often, name="score log", daemon=True)
        self._thread.start()

    def add(
        self,
        version: int,
        user: int,
        start: int,
        items: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float32],
    ) -> None:
        """Adds a request: its candidates' items `[C]` and their scores `[2, C]`."""
        with self._lock:
            self._rows.append((int(time.time() * 1000), version, user, start, items, scores[0], scores[1]))
            if len(self._rows) >= self._max_rows:
                self._wanted.set()

    def close(self) -> None:
        """Writes what is left."""
        self._ended.set()
        self._wanted.set()
        self._thread.join()

    def _write_often(self) -> None:
        while not self._ended.is_set():
            self._wanted.wait(self._max_s)
            self._wanted.clear()
            with self._lock:
                rows, self._rows = self._rows, []
            if not rows:
                continue
            try:
                self._write(rows)
            except OSError as error:  # a full disk must not stop what scores
                logger.error("%d requests are not logged: %s", len(rows), error)

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        now = datetime.now(UTC)
        folder = self._folder / f"ds={now:%Y-%m-%d}"
        if not folder.exists():  # once a day
            first = f"ds={now - timedelta(days=KEEP_DAYS):%Y-%m-%d}"
            for old in self._folder.glob("ds=*"):
                if old.name < first:
                    shutil.rmtree(old, ignore_errors=True)  # another process may be at it
            folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        path = folder / f"{now:%H%M%S}-{os.getpid()}-{self._number}.parquet"
        partial = path.with_name(f".{path.name}")
        columns = [
            _lists(values) if pa.types.is_list(field.type) else pa.array(values, field.type)
            for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
        ]
        pq.write_table(pa.table(columns, schema=SCHEMA), partial)
        os.replace(partial, path)


def _lists(arrays: Sequence[npt.NDArray[Any]]) -> pa.ListArray:
    """Arrays as a column, without a Python object for each value: what scores waits for this thread."""
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(arrays)))
