"""Puts simulated deliveries into the lake from one process: gzipped JSON lines, and the oracle as Delta.

District after district is simulated and its lines go straight to the files of their days, so that memory
holds one district and the oracle (about 70 bytes an impression). A log's folder of a day is written beside
its place and moved there whole; a rerun replaces it by the same bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
from deltalake import Field, write_deltalake
from deltalake.schema import PrimitiveType

from spark_jobs.contract import locations
from spark_jobs.contract.phases import reach
from spark_jobs.lake.log import exists, open_table
from spark_jobs.simulator.deliveries import LOGS, ORACLE_COLUMNS, district_deliveries
from spark_jobs.simulator.settings import SimulationSettings

logger = logging.getLogger(__name__)
_DAYS_AT_ONCE = 100  # five open files each
_FILE = "part-00000.jsonl.gz"
_ORACLE_SCHEMA = pa.schema(
    [
        ("impression_id", pa.string()),
        *((name, pa.float64()) for name in ORACLE_COLUMNS[1:]),
        ("ds", pa.string()),
    ]
)


def write_deliveries(settings: SimulationSettings, days: list[str]) -> dict[str, dict[str, int]]:
    """Simulates `days` (ascending) and writes them below `locations.raw("foodlog")`.

    Returns:
        Lines by log, by day.

    Raises:
        ValueError: A day lies before the first day, or the lake is not a folder of this machine.
    """
    if "://" in locations.lake():
        raise ValueError(f"{locations.lake()} is no local folder: simulate with --spark to write there")
    counts: dict[str, dict[str, int]] = {}
    for first in range(0, len(days), _DAYS_AT_ONCE):
        counts |= _write(settings, days[first : first + _DAYS_AT_ONCE], Path(locations.raw("foodlog")))
    return counts


def _write(settings: SimulationSettings, days: list[str], root: Path) -> dict[str, dict[str, int]]:
    counts = {ds: dict.fromkeys(LOGS, 0) for ds in days}
    oracles: dict[str, list[pa.Table]] = {ds: [] for ds in days}
    with contextlib.ExitStack() as stack:
        files = {(ds, log): stack.enter_context(_open(root, log, ds)) for ds in days for log in LOGS}
        for district in range(settings.districts):
            for part in district_deliveries(settings, district, days):
                for log, lines in part.lines.items():
                    files[part.ds, log].write("".join(f"{line}\n" for line in lines).encode())
                    counts[part.ds][log] += len(lines)
                oracles[part.ds].append(_oracle_table(part.oracle, part.ds))
    for ds in days:
        reach("simulate:before_move")
        for log in LOGS:
            _move(root, log, ds)
            reach(f"simulate:{log}_moved")
        _write_oracle(ds, pa.concat_tables(oracles.pop(ds)))
        reach("simulate:oracle_written")
        logger.info("foodlog: wrote the delivery of %s: %s", ds, counts[ds])
    return counts


def _open(root: Path, log: str, ds: str) -> gzip.GzipFile:
    """A new file for a log's day, outside of the place where readers look."""
    folder = _unfinished(root, log, ds)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Level 1 is four times faster than 9; no time inside, so that equal lines give equal bytes.
    return gzip.GzipFile(folder / _FILE, "wb", compresslevel=1, mtime=0)


def _unfinished(root: Path, log: str, ds: str) -> Path:
    return root / log / f".ds={ds}"  # a leading dot: neither Spark nor an operator's glob reads it


def _move(root: Path, log: str, ds: str) -> None:
    folder = root / log / f"ds={ds}"
    if folder.exists():
        shutil.rmtree(folder)
    _unfinished(root, log, ds).rename(folder)


def _oracle_table(oracle: pd.DataFrame, ds: str) -> pa.Table:
    return pa.Table.from_pandas(oracle.assign(ds=ds), schema=_ORACLE_SCHEMA, preserve_index=False)


def _write_oracle(ds: str, oracle: pa.Table) -> None:
    path = locations.table("foodlog", "oracle")
    Path(path).mkdir(parents=True, exist_ok=True)
    complete_oracle(path)
    write_deltalake(
        path,
        oracle,
        mode="overwrite",
        partition_by=["ds"],
        predicate=f"ds = '{ds}'",
    )


def complete_oracle(uri: str) -> None:
    """Gives the oracle's table, if there is one, the columns that it lacks: an earlier version has fewer."""
    if not exists(uri):
        return
    table = open_table(uri)
    had = {field.name for field in table.schema().fields}
    lacking = [Field(name, PrimitiveType("double")) for name in ORACLE_COLUMNS[1:] if name not in had]
    if lacking:
        table.alter.add_columns(lacking)
