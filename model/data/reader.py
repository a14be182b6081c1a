"""Reads the samples table by day, streaming, a bounded number of tokens at a time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from model.data.batch import SEQUENCES
from model.data.encoder import mix64
from spark_jobs.contract import locations
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import commits
from spark_jobs.lake.rows import Piece, Rows, Slice
from spark_jobs.lake.verdicts import Standings, standings

logger = logging.getLogger(__name__)

CHUNK_TOKENS = 2_000_000  # of a chunk as it is read: some 0.2 GB of rows, and as much of tensors


class SamplesUnavailableError(CommandError):
    """The samples asked for cannot be read; the message names table, version or day and what to do."""


class SamplesTable:
    """One version of a dataset's samples table.

    Args:
        dataset: Whose table.
        version: Delta version to read; the newest by default.

    Raises:
        SamplesUnavailableError: There is no such table or version.
    """

    def __init__(self, dataset: Dataset, version: int | None = None) -> None:
        self.dataset = dataset
        self.uri = locations.table(dataset.name, "samples")
        try:
            self._table = DeltaTable(self.uri, version=version)
        except TableNotFoundError as error:
            raise SamplesUnavailableError(
                f"there is no samples table at {self.uri}; build it: "
                f"python -m spark_jobs.build_samples --dataset {dataset.name} --ds <day>"
            ) from error
        except (DeltaError, OSError) as error:
            raise SamplesUnavailableError(
                f"version {version} of {self.uri} is no longer readable ({error}); was it vacuumed?"
            ) from error
        self.version = int(self._table.version())
        self._rows = Rows(self._table)

    @property
    def identity(self) -> str:
        """Id of the table: one that was moved away and built again counts its versions anew."""
        return str(self._table.metadata().id)

    @property
    def columns(self) -> frozenset[str]:
        """Names of its columns in this version."""
        return frozenset(field.name for field in self._table.schema().fields)

    def days(self) -> list[str]:
        """Days that have samples, ascending."""
        return sorted({partition["ds"] for partition in self._table.partitions() if partition["ds"]})

    def standings(self, days: Sequence[str]) -> Standings:
        """How days of this version stand with their gate.

        Raises:
            ValueError: A verdict cannot be read.
            LakeError: The table's log cannot be read.
        """
        return standings(self.dataset.name, "samples", days, self.version)

    def require_days(self, days: Sequence[str]) -> None:
        """Checks that the days have samples.

        Raises:
            SamplesUnavailableError: One has none.
        """
        for ds in sorted(set(days) - set(self.days())):
            raise SamplesUnavailableError(f"version {self.version} of {self.uri} has no samples of day {ds}")

    def require_columns(self, columns: Sequence[str]) -> None:
        """Checks that the table has columns.

        Raises:
            SamplesUnavailableError: It lacks some.
        """
        if missing := [name for name in columns if name not in self.columns]:
            raise SamplesUnavailableError(
                f"version {self.version} of {self.uri} lacks the columns {', '.join(missing)}; build the "
                "days again by the declaration of today"
            )

    def require(self, days: Sequence[str]) -> None:
        """Checks that all files of the days are there: before hours of work, not in the midst of it.

        Raises:
            SamplesUnavailableError: A file of this version is gone.
        """
        lost = self._rows.lost(days)
        if lost:
            raise SamplesUnavailableError(
                f"version {self.version} of {self.uri} is no longer readable: {len(lost)} of its files are "
                f"gone, e.g. {lost[0]}; vacuumed or deleted: use a newer version, or build the days again"
            )

    def written_at(self, ds: str) -> int:
        """Version in which a day's rows were last written; this one, where no commit names the day."""
        written = (c for c in commits(self.uri) if c.metadata.get("partition") == f"ds={ds}")
        return next((commit.version for commit in written if commit.version <= self.version), self.version)

    def code_versions(self, days: Sequence[str]) -> dict[str, str]:
        """Which code built each of the days, as the newest commit of its partition says."""
        shas: dict[str, str] = {}
        for commit in commits(self.uri):  # newest first
            day = str(commit.metadata.get("partition", "")).removeprefix("ds=")
            if commit.version <= self.version and day in days:
                shas.setdefault(day, str(commit.metadata.get("git_sha", "unknown")))
            if len(shas) == len(days):
                break
        return dict(sorted(shas.items()))

    def slices(self, ds: str) -> list[Slice]:
        """The files of a day with their numbers of rows.

        Raises:
            SamplesUnavailableError: The day has no rows or a file cannot be read.
        """
        self.require_days([ds])
        with self._told(ds):
            slices = self._rows.slices(ds)
        if not sum(part.rows for part in slices):
            raise SamplesUnavailableError(
                f"day {ds} of version {self.version} of {self.uri} has files without any row; build it again"
            )
        return slices

    def read(self, ds: str, part: Slice, columns: Sequence[str] | None = None) -> Iterator[Piece]:
        """Rows of a day's file, a few at a time.

        Raises:
            SamplesUnavailableError: The file cannot be read.
        """
        with self._told(ds):
            yield from self._rows.read(part, columns)

    def chunks(self, ds: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Rows of a day, at most some `CHUNK_TOKENS` tokens at a time, in the order of its files.

        Raises:
            SamplesUnavailableError: The day has no rows or a file cannot be read.
        """
        held: list[pa.RecordBatch] = []
        tokens = 0
        for part in self.slices(ds):
            for piece in self.read(ds, part, columns):
                held.append(piece.batch)
                tokens += int(tokens_of(piece.batch).sum())
                if tokens >= CHUNK_TOKENS:
                    yield pa.Table.from_batches(held)
                    held, tokens = [], 0
        if held:
            yield pa.Table.from_batches(held)

    @contextlib.contextmanager
    def _told(self, ds: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException, DeltaError) as error:
            raise SamplesUnavailableError(
                f"cannot read day {ds} of version {self.version} of {self.uri}: {error}; "
                "if its files were vacuumed use a newer version, if they are damaged build the day again"
            ) from error

    def sample(self, ds: str, rows: int, columns: list[str]) -> pa.Table:
        """The `rows` rows of a day with the least hashes, in the order of these.

        Drawn over the whole day, one chunk in memory at a time, whatever the order of its files.

        Raises:
            SamplesUnavailableError: As `chunks`.
        """
        kept: list[pa.Table] = []
        greatest = np.uint64(np.iinfo(np.uint64).max)
        for chunk in self.chunks(ds, columns):
            kept.append(chunk.filter(pa.array(order_hash(chunk, f"sample/{ds}") <= greatest)))
            if sum(part.num_rows for part in kept) > 2 * rows:
                # What lies beyond the least `rows` so far can never come back.
                least = _least_hashed(pa.concat_tables(kept), rows, f"sample/{ds}")
                kept, greatest = [least], order_hash(least, f"sample/{ds}")[-1]
        return _least_hashed(pa.concat_tables(kept), rows, f"sample/{ds}")


def judged_day(dataset: Dataset, ds: str) -> tuple[SamplesTable, str]:
    """The samples table at a version at which a day may be used.

    The newest; or, when the day was built again and its gate has not judged it yet, the one that passed.

    Returns:
        The table, and why an operator allowed the day where its gate did not pass it.

    Raises:
        SamplesUnavailableError: The day has no samples.
        NotPassedError: It failed, or no gate has judged it.
    """
    table = SamplesTable(dataset)
    table.require_days([ds])
    stands = table.standings([ds])
    if ds in stands.earlier:
        table = SamplesTable(dataset, stands.earlier[ds])
    else:
        stands.require_usable(ds)
    return table, stands.reasons.get(ds, "")


def _least_hashed(table: pa.Table, rows: int, salt: str) -> pa.Table:
    keys = (table["window_start_ms"].to_numpy(), table["user_id"].to_numpy(), order_hash(table, salt))
    return table.take(np.lexsort(keys)[:rows])


def order_hash(table: pa.Table | pa.RecordBatch, salt: str) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A hash of each row's user and window, and of `salt`."""
    seed = mix64(np.frombuffer(salt.encode().ljust(-(-len(salt.encode()) // 8) * 8), np.int64)).sum()
    user, window = (table.column(name).to_numpy() for name in ("user_id", "window_start_ms"))
    mixed = mix64(user) ^ mix64(window ^ np.int64(0x5851F42D4C957F2D)) ^ seed
    hashed: np.ndarray[tuple[int], np.dtype[np.uint64]] = mix64(mixed.view(np.int64))
    return hashed


def tokens_of(rows: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """How many values the lists of each row have, of one column of each group that has any, and one more."""
    tokens = np.ones(rows.num_rows, np.int64)
    for group in SEQUENCES:
        lists = (
            field.name
            for field in rows.schema
            if field.name.startswith(f"{group}_") and pa.types.is_list(field.type)
        )
        if name := next(lists, None):
            tokens += np.diff(rows.column(name).offsets.to_numpy())
    return tokens
