"""Reads the samples table by day, streaming, in an order that depends on its rows and a seed alone.

Days come in order; within a day rows come in chunks, and within a chunk in the order of a hash of
(seed, pass, user, window), so that the order does not depend on how the day's files were written (for a day
of more than one chunk: beyond the order of its files). Steps are cut by cumulative tokens, and every rank
reads the same steps and keeps its share of each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from model.data.batch import JaggedBatch, token_cuts
from model.data.encoder import SampleEncoder, mix64
from spark_jobs.contract import locations
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Dataset
from spark_jobs.lake.log import commits
from spark_jobs.lake.rows import Rows
from spark_jobs.lake.verdicts import Standings, standings

logger = logging.getLogger(__name__)

CHUNK_ROWS = 32_768


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

    def chunks(self, ds: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Rows of a day, at most `CHUNK_ROWS` at a time.

        Raises:
            SamplesUnavailableError: The day has no rows or a file cannot be read.
        """
        self.require_days([ds])
        held: list[pa.RecordBatch] = []
        try:
            for record_batch in self._rows.batches(ds, columns):
                held.append(record_batch)
                if sum(part.num_rows for part in held) >= CHUNK_ROWS:
                    yield pa.Table.from_batches(held)
                    held = []
        except (OSError, pa.ArrowException, DeltaError) as error:
            raise SamplesUnavailableError(
                f"cannot read day {ds} of version {self.version} of {self.uri}: {error}; "
                "if its files were vacuumed use a newer version, if they are damaged build the day again"
            ) from error
        if held and sum(part.num_rows for part in held):
            yield pa.Table.from_batches(held)

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


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step's rows for this rank.

    Attributes:
        name: `<ds>/<pass>/<step>`, to find the batch again.
        batch: This rank's share; may have no rows when a step has fewer rows than ranks.
        num_candidates: Candidates of the step over all ranks.
        weight: Sum of their weights, by which the loss is divided; their number where nothing was sampled.
        num_tokens: Tokens of the step over all ranks.
        row_hash: Hash of each of the rank's rows in (0, 1), for reproducible random choices.
    """

    name: str
    batch: JaggedBatch
    num_candidates: int
    weight: float
    num_tokens: int
    row_hash: torch.Tensor


def order_hash(table: pa.Table, salt: str) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A hash of each row's user and window, and of `salt`."""
    seed = mix64(np.frombuffer(salt.encode().ljust(-(-len(salt.encode()) // 8) * 8), np.int64)).sum()
    user, window = (table.column(name).combine_chunks().to_numpy() for name in ("user_id", "window_start_ms"))
    mixed = mix64(user) ^ mix64(window ^ np.int64(0x5851F42D4C957F2D)) ^ seed
    hashed: np.ndarray[tuple[int], np.dtype[np.uint64]] = mix64(mixed.view(np.int64))
    return hashed


def steps_of(
    table: SamplesTable,
    encoder: SampleEncoder,
    ds: str,
    *,
    pass_number: int,
    batch_tokens: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Step]:
    """Steps of one pass over a day; the same on every call, and together the same for any world size."""
    number = 0
    for chunk in table.chunks(ds, [*encoder.columns, *encoder.label_columns]):
        hashes = order_hash(chunk, f"{seed}/{ds}/{pass_number}")
        order = np.lexsort((chunk["window_start_ms"].to_numpy(), chunk["user_id"].to_numpy(), hashes))
        rows = encoder.encode(chunk).select(torch.from_numpy(order))
        row_hash = torch.from_numpy(mix64(hashes[order].view(np.int64)) / 2.0**64)
        tokens, candidates, weights = rows.tokens_B(), rows.num_candidates_B(), rows.weights_B()
        first = 0
        for end in token_cuts(tokens, batch_tokens):
            # A rank takes the rows whose middle token lies in its part of the step's tokens: every row falls
            # to exactly one rank, and ranks differ by less than a row, where equal counts of rows would let
            # one long history keep all the others waiting.
            ends = tokens[first:end].cumsum(0).float()
            bounds = torch.searchsorted(
                ends - tokens[first:end] / 2, ends[-1] * torch.arange(world_size + 1) / world_size
            )
            share = torch.arange(first + int(bounds[rank]), first + int(bounds[rank + 1]))
            yield Step(
                name=f"{ds}/{pass_number}/{number}",
                batch=rows.select(share),
                num_candidates=int(candidates[first:end].sum()),
                weight=float(weights[first:end].sum()),
                num_tokens=int(tokens[first:end].sum()),
                row_hash=row_hash[share],
            )
            first = end
            number += 1
