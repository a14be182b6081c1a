"""Puts simulated deliveries into the lake from one process: gzipped JSON lines, and the oracle as Delta.

A log's folder of a day is written beside its place and moved there whole; a rerun
replaces it by the same bytes.
"""

from __future__ import annotations

import gzip
import logging
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
from deltalake import write_deltalake

from spark_jobs import locations
from spark_jobs.simulator.deliveries import LOGS, ORACLE_COLUMNS, DistrictDelivery, district_deliveries
from spark_jobs.simulator.settings import Settings

logger = logging.getLogger(__name__)


def write_deliveries(settings: Settings, days: list[str]) -> dict[str, dict[str, int]]:
    """Simulates `days` (ascending) and writes them below `locations.raw("foodlog")`.

    Returns:
        Lines by log, by day.

    Raises:
        ValueError: A day lies before the first day, or the lake is not a folder of this machine.
    """
    if "://" in locations.lake():
        raise ValueError(f"{locations.lake()} is no local folder: simulate with --spark to write there")
    root = Path(locations.raw("foodlog"))
    districts = [district_deliveries(settings, district, days) for district in range(settings.districts)]
    counts: dict[str, dict[str, int]] = {}
    for ds in days:
        parts = [next(deliveries) for deliveries in districts]
        counts[ds] = {log: _write_log(root, log, ds, parts) for log in LOGS}
        _write_oracle(ds, pd.concat([part.oracle for part in parts], ignore_index=True))
        logger.info("foodlog: wrote the delivery of %s: %s", ds, counts[ds])
    return counts


def oracle_table(oracle: pd.DataFrame, ds: str) -> pa.Table:
    """The oracle of a day as an Arrow table, `ds` included."""
    fields = [("impression_id", pa.string()), *((name, pa.float64()) for name in ORACLE_COLUMNS[1:])]
    return pa.Table.from_pandas(
        oracle.assign(ds=ds), schema=pa.schema([*fields, ("ds", pa.string())]), preserve_index=False
    )


def _write_log(root: Path, log: str, ds: str, parts: list[DistrictDelivery]) -> int:
    folder = root / log / f"ds={ds}"
    unfinished = root / log / f".ds={ds}"  # a leading dot: neither Spark nor an operator's glob reads it
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    lines = [line for part in parts for line in part.lines[log]]
    text = "".join(f"{line}\n" for line in lines)
    # Level 1 is four times faster than 9; no time and no name inside, so that equal lines give equal bytes.
    (unfinished / "part-00000.jsonl.gz").write_bytes(gzip.compress(text.encode(), compresslevel=1, mtime=0))
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return len(lines)


def _write_oracle(ds: str, oracle: pd.DataFrame) -> None:
    path = locations.table("foodlog", "oracle")
    Path(path).mkdir(parents=True, exist_ok=True)
    write_deltalake(
        path, oracle_table(oracle, ds), mode="overwrite", partition_by=["ds"], predicate=f"ds = '{ds}'"
    )
