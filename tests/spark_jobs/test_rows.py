"""Rows read without Spark: deletion vectors, features that readers must know, and how such a process ends."""

from __future__ import annotations

import collections
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy
from deltalake import DeltaTable, write_deltalake
from deltalake.fs import DeltaStorageHandler

from model.data.reader import SamplesTable
from model.data.synthetic import random_samples
from spark_jobs.contract import locations
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import rows
from spark_jobs.lake.log import LakeError
from spark_jobs.lake.rows import Rows
from spark_jobs.lake.writer import replace_partition, table_at

DAYS = ("2026-03-01", "2026-03-02")
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def samples(lake: Path) -> str:
    """Two days of samples; the URI of their table."""
    uri = locations.table("foodlog", "samples")
    for seed, ds in enumerate(DAYS):
        write_deltalake(
            uri, random_samples(FOODLOG, 60, seed=seed, ds=ds), partition_by=["ds"], mode="append"
        )
    return uri


def users_of(ds: str) -> list[int]:
    return [int(user) for chunk in SamplesTable(FOODLOG).chunks(ds) for user in chunk["user_id"].to_pylist()]


def test_rows_that_deletion_vectors_delete_are_not_read(spark: Any, samples: str) -> None:
    before = {ds: users_of(ds) for ds in DAYS}
    erased = before[DAYS[0]][3]
    spark.sql(f"ALTER TABLE delta.`{samples}` SET TBLPROPERTIES ('delta.enableDeletionVectors' = true)")
    spark.sql(f"DELETE FROM delta.`{samples}` WHERE user_id = {erased}")
    files = len(DeltaTable(samples).file_uris())
    assert pa.table(DeltaTable(samples).deletion_vectors()).num_rows, "the case is not reached"
    assert {ds: users_of(ds) for ds in DAYS} == {
        ds: [user for user in users if user != erased] for ds, users in before.items()
    }
    SamplesTable(FOODLOG).require(DAYS)
    # A whole day is gone with its last row; the other one, whose vectors are untouched, stays.
    spark.sql(f"DELETE FROM delta.`{samples}` WHERE ds = '{DAYS[1]}' AND user_id >= 0")
    assert SamplesTable(FOODLOG).days() == [DAYS[0]]
    assert len(DeltaTable(samples).file_uris()) < files
    assert erased not in users_of(DAYS[0])


def test_what_a_reader_must_know_and_does_not_is_named(spark: Any, samples: str) -> None:
    spark.sql(f"ALTER TABLE delta.`{samples}` SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    with pytest.raises(LakeError, match=r"asks its readers for columnMapping, .* DROP FEATURE columnMapping"):
        SamplesTable(FOODLOG)


@pytest.mark.parametrize("is_local", [True, False])
def test_no_thread_of_a_library_reads_through_python(
    samples: str, monkeypatch: pytest.MonkeyPatch, is_local: bool
) -> None:
    readers: list[str] = []
    opened = DeltaStorageHandler.open_input_file

    class Noted:
        """A file that notes which thread reads it."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            readers.append(threading.current_thread().name)
            return getattr(self._file, name)

    monkeypatch.setattr(
        DeltaStorageHandler, "open_input_file", lambda self, path: pa.PythonFile(Noted(opened(self, path)))
    )
    if not is_local:
        monkeypatch.setattr(rows, "_LOCAL", "none://")
    found = {ds: pa.Table.from_batches(Rows(DeltaTable(samples)).batches(ds, ["user_id"])) for ds in DAYS}
    assert {ds: table.num_rows for ds, table in found.items()} == dict.fromkeys(DAYS, 60)
    assert Rows(DeltaTable(samples)).lost(DAYS) == []
    assert set(readers) == (set() if is_local else {threading.current_thread().name})


def test_a_folder_with_any_other_sign_works(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "a !\"$%&'()+,;:<=>@^`|~é-100% b"))
    monkeypatch.delenv("MTGR_LAKE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    locations.check()
    uri = locations.table("foodlog", "samples")
    replace_partition(
        spark.createDataFrame([(DAYS[0], 7)], "ds string, x bigint"),
        uri,
        {"ds": DAYS[0]},
        columns=[("ds", "string"), ("x", "bigint")],
        partition_by=["ds"],
        stage="test",
    )
    assert [batch["x"].to_pylist() for batch in Rows(DeltaTable(uri)).batches(DAYS[0])] == [[7]]
    assert table_at(spark, uri).count() == 1
    raw = Path(locations.raw("foodlog")) / f"ds={DAYS[0]}"
    raw.mkdir(parents=True)
    (raw / "part.json").write_text('{"x": 1}\n')
    assert spark.read.option("pathGlobFilter", "*.json").json(str(raw)).count() == 1
    store = locations.var() / "mlflow" / "mlflow.db"
    store.parent.mkdir()
    with sqlalchemy.create_engine(locations.tracking_uri()).connect() as connection:
        connection.exec_driver_sql("create table t (x int)")
    assert store.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [locations.var().name]


_READ = """
from model.data.reader import SamplesTable
from spark_jobs.contract.foodlog import FOODLOG
table = SamplesTable(FOODLOG)
print(sum(chunk.num_rows for ds in table.days() for chunk in table.chunks(ds)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("samples")
def test_a_process_that_has_read_ends_well() -> None:
    codes: collections.Counter[int] = collections.Counter()
    for _ in range(15):
        several = [
            subprocess.Popen([sys.executable, "-c", _READ], cwd=REPOSITORY, stdout=subprocess.PIPE)
            for _ in range(4)
        ]
        for process in several:
            output, _ = process.communicate()
            assert output == b"120\n"
            codes[process.returncode] += 1
    assert codes == {0: 60}
