"""Rows of a Delta table's partition without Spark, streaming, rows deleted by deletion vectors left out.

Arrow reads the files by its own threads, which may outlive the scan. They must not call into Python: a thread
that does so while the interpreter ends is ended by force, and takes the process along (SIGABRT, exit code
134, after the result was printed). So local files are read by Arrow's own file system, and those of an object
store are fetched by the calling thread and handed over as bytes, instead of through deltalake's file system,
which is Python's.
"""

from __future__ import annotations

import contextlib
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable

from spark_jobs.lake.log import LakeError

# What a reader must know of a table, and this one does. Column mapping, type widening, ... are refused.
FEATURES = frozenset(("deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"))
_LOCAL = "file://"
_RECORD_ROWS = 1_024  # a row may hold a thousand behaviours
_READ_AHEAD = 2  # record batches that Arrow decodes before they are asked for
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


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows of a file that count: `rows` of them from the `first` on, deleted ones left out.

    Args:
        file: The file.
        first: Number of the first row.
        rows: How many.
    """

    file: DataFile
    first: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows as they were read.

    Args:
        path: Of the file, relative to the table.
        batch: The rows.
        numbers: int64, the number of each row in its file, deleted ones counted.
    """

    path: str
    batch: pa.RecordBatch
    numbers: npt.NDArray[np.int64]


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

    def slices(self, partition: str) -> list[Slice]:
        """The partition's files with how many rows each has; reads the footers alone.

        Raises:
            OSError: A file cannot be read.
            pyarrow.ArrowException: A file is damaged; the message names it.
            DeltaError: A deletion vector cannot be read.
        """
        slices = []
        for file in self.files([partition]):
            with self._store().open_input_file(file.path) as stream, _named(file.path):
                rows = pq.read_metadata(stream).num_rows
            kept = self._kept_rows(file.path)
            slices.append(Slice(file=file, first=0, rows=rows if kept is None else len(_numbers(kept, rows))))
        return slices

    def batches(self, partition: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Rows of a partition, file after file, at most 1,024 at a time.

        Raises:
            OSError, pyarrow.ArrowException, DeltaError: As `slices`.
        """
        for part in self.slices(partition):
            yield from (piece.batch for piece in self.read(part, columns))

    def read(self, part: Slice, columns: Sequence[str] | None = None) -> Iterator[Piece]:
        """Rows of a slice, at most 1,024 at a time; row groups outside of it are not read.

        Raises:
            OSError, pyarrow.ArrowException, DeltaError: As `slices`.
        """
        if not part.rows:
            return
        with _named(part.file.path):
            fragment = self._fragment(part.file)
            ends = np.cumsum([group.num_rows for group in fragment.row_groups])
            kept = self._kept_rows(part.file.path)
            numbers = np.arange(ends[-1]) if kept is None else _numbers(kept, int(ends[-1]))
            numbers = numbers[part.first : part.first + part.rows]
            groups = np.unique(np.searchsorted(ends, numbers, "right"))
            scanner = pads.Scanner.from_fragment(
                fragment.subset(row_group_ids=groups.tolist()),
                schema=self._schema,
                columns=None if columns is None else list(columns),
                batch_size=_RECORD_ROWS,
                batch_readahead=_READ_AHEAD,
                fragment_readahead=1,
                fragment_scan_options=_CHECKED,
            )
            sizes = np.diff(ends, prepend=0)[groups]
            # Numbers of the rows that are scanned, with those between the groups that are not.
            scanned = np.concatenate([ends[g] - n + np.arange(n) for g, n in zip(groups, sizes, strict=True)])
            first = 0
            for batch in scanner.to_batches():
                of_batch = scanned[first : first + batch.num_rows]
                first += batch.num_rows
                low, high = np.searchsorted(numbers, (of_batch[0], of_batch[-1] + 1))
                place = np.searchsorted(of_batch, numbers[low:high])
                if len(place) and place[-1] - place[0] + 1 == len(place):
                    batch = batch.slice(int(place[0]), len(place))  # not a copy
                elif len(place):
                    batch = batch.take(pa.array(place))
                if len(place):
                    yield Piece(path=part.file.path, batch=batch, numbers=numbers[low:high])

    def _fragment(self, file: DataFile) -> pads.ParquetFileFragment:
        form = pads.ParquetFileFormat()
        where = pads.field(self._column) == pa.scalar(file.partition)
        store = self._store()
        if isinstance(store, pafs.SubTreeFileSystem):
            return form.make_fragment(file.path, filesystem=store, partition_expression=where)
        with store.open_input_file(file.path) as stream:
            return form.make_fragment(pa.py_buffer(stream.read()), partition_expression=where)

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


def _numbers(kept: pa.Array, rows: int) -> npt.NDArray[np.int64]:
    """Numbers of the rows of a file that a mask keeps; beyond the mask's end all count."""
    mask = np.ones(rows, bool)
    mask[: len(kept)] = kept.to_numpy(zero_copy_only=False)[:rows]
    return np.flatnonzero(mask)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Names the file in what Arrow says of it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise type(error)(f"file {path}: {error}") from error


def _local(uri: str) -> str:
    return str(Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path)))
