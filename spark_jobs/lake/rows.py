"""Rows of a Delta table's partition without Spark, streaming, rows deleted by deletion vectors left out.

Arrow reads the files by its own threads, which may outlive the scan. They must not call into Python: a thread
that does so while the interpreter ends is ended by force, and takes the process along (SIGABRT, exit code
134, after the result was printed). So local files are read by Arrow's own file system, and those of an object
store are fetched by the calling thread and handed over as bytes, instead of through deltalake's file system,
which is Python's.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import DeltaTable

from spark_jobs.lake.log import LakeError

# What a reader must know of a table, and this one does. Column mapping, type widening, ... are refused.
FEATURES = frozenset(("deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"))
_LOCAL = "file://"
_RECORD_ROWS = 8_192
# A bit that flipped on disk is an error, not a feature: Spark writes a checksum for every page.
_CHECKED = pads.ParquetFragmentScanOptions(page_checksum_verification=True, pre_buffer=True)


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file of a table version.

    Args:
        path: As the log names it, relative to the table.
        partition: Its value of the partition column.
    """

    path: str
    partition: str


class Rows:
    """The rows of one version of a table that is partitioned by one column.

    Args:
        table: The version.
        column: The partition column.

    Raises:
        LakeError: Reading it right takes something that this reader does not know.
    """

    def __init__(self, table: DeltaTable, column: str = "ds") -> None:
        self._table = table
        self._column = column
        self._uri = table.table_uri.rstrip("/")
        _require_features(table, self._uri)
        self._schema = pa.schema(table.schema().to_arrow())
        self._kept: dict[str, pa.ChunkedArray] | None = None

    def files(self, partitions: Sequence[str]) -> list[DataFile]:
        """Files of the partitions, by path."""
        actions = pa.table(self._table.get_add_actions(flatten=True))
        if not actions.num_rows:
            return []
        named = zip(
            actions.column("path").to_pylist(),
            actions.column(f"partition.{self._column}").to_pylist(),
            strict=True,
        )
        return sorted(
            (DataFile(path=path, partition=str(value)) for path, value in named if str(value) in partitions),
            key=lambda file: file.path,
        )

    def lost(self, partitions: Sequence[str]) -> list[str]:
        """Paths of the partitions' files that are not there any more."""
        files = [file.path for file in self.files(partitions)]
        if not files:
            return []
        return [info.path for info in self._store().get_file_info(files) if not info.is_file]

    def batches(self, partition: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of a partition, file after file, at most 8,192 at a time.

        Raises:
            OSError: A file cannot be read.
            pyarrow.ArrowException: A file is damaged.
            DeltaError: A deletion vector cannot be read.
        """
        for file in self.files([partition]):
            kept = self._kept_rows(file.path)
            first = 0
            for batch in self._scanner(file, columns).to_batches():
                rows = batch.num_rows
                yield batch if kept is None else batch.filter(_part(kept, first, rows))
                first += rows

    def _scanner(self, file: DataFile, columns: Sequence[str] | None) -> pads.Scanner:
        form = pads.ParquetFileFormat()
        where = pads.field(self._column) == pa.scalar(file.partition)
        store = self._store()
        if isinstance(store, pafs.SubTreeFileSystem):
            fragment = form.make_fragment(file.path, filesystem=store, partition_expression=where)
        else:
            with store.open_input_file(file.path) as stream:
                fragment = form.make_fragment(pa.py_buffer(stream.read()), partition_expression=where)
        return pads.Scanner.from_fragment(
            fragment,
            schema=self._schema,
            columns=None if columns is None else list(columns),
            batch_size=_RECORD_ROWS,
            fragment_scan_options=_CHECKED,
        )

    def _store(self) -> Any:
        """The file system of the table's folder: Arrow's own for local files."""
        if self._uri.startswith(_LOCAL):
            return pafs.SubTreeFileSystem(_local(self._uri), pafs.LocalFileSystem())
        from deltalake.fs import DeltaStorageHandler

        return pafs.PyFileSystem(DeltaStorageHandler(self._uri))

    def _kept_rows(self, path: str) -> pa.ChunkedArray | None:
        """Which rows of a file still count; None for all."""
        if self._kept is None:
            vectors = pa.table(self._table.deletion_vectors()) if _has_vectors(self._table) else None
            self._kept = {} if vectors is None else _by_path(vectors, self._uri)
        return self._kept.get(path)


def _require_features(table: DeltaTable, uri: str) -> None:
    """Raises `LakeError` where a reader must know more of a table than this one does."""
    needed = set(table.protocol().reader_features or ())
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        needed.add("columnMapping")  # an older protocol has no list of features
    unknown = sorted(needed - FEATURES)
    if unknown:
        raise LakeError(
            f"{uri} asks its readers for {', '.join(unknown)}, which this one does not know: remove it, "
            f"`ALTER TABLE delta.`{uri}` DROP FEATURE {unknown[0]}` in Spark, and use the version that makes"
        )


def _has_vectors(table: DeltaTable) -> bool:
    return "deletionVectors" in (table.protocol().reader_features or ())


def _by_path(vectors: pa.Table, uri: str) -> dict[str, pa.ChunkedArray]:
    root = urllib.parse.unquote(uri) + "/"
    return {
        urllib.parse.unquote(path).removeprefix(root): kept.values
        for path, kept in zip(
            vectors.column("filepath").to_pylist(), vectors.column("selection_vector"), strict=True
        )
    }


def _part(kept: pa.Array, first: int, rows: int) -> pa.Array:
    """The part of a keep mask that is of `rows` rows from `first` on; beyond its end all rows count."""
    part = kept.slice(first, rows)
    return pa.concat_arrays([part, pa.array([True] * (rows - len(part)), pa.bool_())])


def _local(uri: str) -> str:
    return str(Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path)))
