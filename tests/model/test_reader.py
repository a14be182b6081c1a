"""Reading the samples table: what is gone or damaged is named, before training and never as a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    Schema,
    convert_to_deltalake,
    write_deltalake,
)

from model.config.presets import preset_named
from model.data.reader import SamplesTable, SamplesUnavailableError
from model.data.synthetic import random_samples
from model.training import loop as training
from model.training.step import Trainer
from spark_jobs.contract import locations
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")


def add_day(ds: str, seed: int, code: str = "abc") -> None:
    record = json.dumps({"partition": f"ds={ds}", "git_sha": code})
    write_deltalake(
        locations.table("foodlog", "samples"),
        random_samples(FOODLOG, 30, seed=seed, ds=ds),
        partition_by=["ds"],
        mode="overwrite",
        predicate=f"ds = '{ds}'",
        commit_properties=CommitProperties(custom_metadata={"userMetadata": record}),
    )
    verdicts.allow("foodlog", "samples", [ds], "a test")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three days of samples, the last built by other code."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for name in ("MTGR_LAKE", "MTGR_RUNS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for seed, ds in enumerate(DAYS):
        add_day(ds, seed, "abc" if ds != DAYS[2] else "def")
    return tmp_path


def files_of(ds: str, version: int | None = None) -> list[Path]:
    table = DeltaTable(locations.table("foodlog", "samples"), version=version)
    return [Path(uri) for uri in table.file_uris(partition_filters=[("ds", "=", ds)])]


@pytest.mark.usefixtures("lake")
def test_a_vacuumed_version_is_named_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = SamplesTable(FOODLOG).version
    add_day(DAYS[1], 7)  # the day is built again; what version 2 had of it is vacuumed
    assert SamplesTable(FOODLOG, pinned).require(DAYS) is None
    table = DeltaTable(locations.table("foodlog", "samples"))
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    old = SamplesTable(FOODLOG, pinned)
    with pytest.raises(
        SamplesUnavailableError, match=rf"version {pinned} of .* no longer readable: 1 of its"
    ):
        old.require(DAYS)
    assert old.require((DAYS[0], DAYS[2])) is None
    SamplesTable(FOODLOG).require(DAYS)

    steps: list[Any] = []
    monkeypatch.setattr(Trainer, "step", lambda *step: steps.append(step))
    (lost, *_) = files_of(DAYS[1])
    lost.unlink()
    with pytest.raises(SamplesUnavailableError, match="no longer readable"):
        training.train(FOODLOG, preset_named("tiny"), DAYS[2], torch.device("cpu"), lambda *_: "")
    assert steps == []  # not even on the first day, which is whole


@pytest.mark.usefixtures("lake")
def test_a_version_that_never_was_is_named() -> None:
    with pytest.raises(SamplesUnavailableError, match=r"version 99 of .* is no longer readable"):
        SamplesTable(FOODLOG, 99)


def test_a_flipped_bit_is_an_error_and_no_feature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file with page checksums, as Spark writes them; this one still decodes."""
    monkeypatch.setenv("MTGR_LAKE", str(tmp_path))
    uri = Path(locations.table("foodlog", "samples"))
    path = uri / f"ds={DAYS[0]}" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    rows = random_samples(FOODLOG, 30, ds=DAYS[0]).drop(["ds"])
    pq.write_table(rows, path, write_page_checksum=True, compression="none", use_dictionary=False)
    convert_to_deltalake(uri, partition_by=Schema([Field("ds", "string")]), partition_strategy="hive")
    assert sum(chunk.num_rows for chunk in SamplesTable(FOODLOG).chunks(DAYS[0])) == 30
    users = pq.ParquetFile(path).metadata.row_group(0).column(rows.schema.get_field_index("user_id"))
    content = bytearray(path.read_bytes())
    content[users.data_page_offset + users.total_compressed_size - 5] ^= 1
    path.write_bytes(content)
    assert pq.read_table(path, partitioning=None)["user_id"] != rows["user_id"]
    with pytest.raises(SamplesUnavailableError, match=rf"cannot read day {DAYS[0]} .*damaged build the day"):
        list(SamplesTable(FOODLOG).chunks(DAYS[0]))


@pytest.mark.usefixtures("lake")
def test_everything_that_trains_lies_before_everything_that_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    chunks = SamplesTable.chunks

    def noted(table: SamplesTable, ds: str, *more: Any, **named: Any) -> Any:
        read.append(ds)
        return chunks(table, ds, *more, **named)

    monkeypatch.setattr(SamplesTable, "chunks", noted)
    monkeypatch.setattr(Trainer, "step", lambda *_: None)
    training.train(FOODLOG, preset_named("tiny"), DAYS[1], torch.device("cpu"), lambda *_: "")
    assert set(read) == {DAYS[0]}

    def times(ds: str, column: str) -> list[int]:
        return [t for chunk in chunks(SamplesTable(FOODLOG), ds, [column]) for t in
                chunk[column].combine_chunks().flatten().to_pylist()]  # fmt: skip

    assert max(times(DAYS[0], "candidate_time_ms")) < min(times(DAYS[1], "candidate_time_ms"))


@pytest.mark.usefixtures("lake")
def test_mixed_code_versions_are_recorded_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    table = SamplesTable(FOODLOG)
    assert table.code_versions(DAYS) == {DAYS[0]: "abc", DAYS[1]: "abc", DAYS[2]: "def"}
    add_day(DAYS[0], 9, "ghi")
    assert table.code_versions(DAYS[:1]) == {DAYS[0]: "abc"}  # of the version that is read, not of the newest

    class Stopped(Exception):  # noqa: N818
        """Ends the run after its check of the samples."""

    def stop(*_: Any) -> None:
        raise Stopped

    monkeypatch.setattr(training, "fit_constants", stop)
    with pytest.raises(Stopped):
        training.train(FOODLOG, preset_named("tiny"), DAYS[2], torch.device("cpu"), lambda *_: "")
    assert "different versions of the code" in caplog.text
    assert "'2026-03-01': 'ghi', '2026-03-02': 'abc'" in caplog.text
