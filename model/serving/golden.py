"""Golden requests: rows of the samples table split by request, with the scores that evaluation gives them.

A package carries some dozens, so that whoever loads it can see that it scores as the model was judged.
`requests_of` is the one way from a row, a user's window with all its impressions, to what a server is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.feather as feather

from model.data.encoder import arrow_schema
from model.data.reader import SamplesTable, SamplesUnavailableError
from model.data.synthetic import random_samples
from model.judging.scoring import SCORES, Scorer
from spark_jobs.contract.features import Dataset, Group
from spark_jobs.lake.verdicts import NotPassedError

logger = logging.getLogger(__name__)

WINDOWS = 24  # rows of a day that requests are taken of
REQUESTS = 96  # at most so many of them
Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Requests and what they score.

    Attributes:
        rows: Columns of the samples table, one request a row, labels among them.
        scores: By name of `scoring.SCORES`, float32 `[candidates]`, request after request.
        source: Where the rows are from, in words.
    """

    rows: pa.Table
    scores: dict[str, npt.NDArray[np.float32]]
    source: str

    @property
    def counts(self) -> Array:
        """Candidates of each request, int64 `[requests]`."""
        lengths: Array = _lengths(self.rows.column("candidate_visible").combine_chunks())
        return lengths

    def write(self, path: Path) -> None:
        """Writes rows and scores as one Arrow file."""
        offsets = pa.array(np.r_[0, self.counts.cumsum()], pa.int32())
        table = self.rows
        for name in SCORES:
            scores = pa.ListArray.from_arrays(offsets, pa.array(self.scores[name], pa.float32()))
            table = table.append_column(f"score_{name}", scores)
        feather.write_feather(table, str(path), compression="uncompressed")

    @staticmethod
    def read(path: Path, source: str) -> Golden:
        """What `write` wrote."""
        table = feather.read_table(str(path), memory_map=False)
        scores = {
            name: table.column(f"score_{name}").combine_chunks().flatten().to_numpy() for name in SCORES
        }
        rows = table.drop_columns([f"score_{name}" for name in SCORES])
        return Golden(rows=rows, scores=scores, source=source)


def golden(scorer: Scorer, windows: pa.Table, source: str) -> Golden:
    """Requests of whole windows, with the scores that these windows' candidates have in evaluation."""
    scores = scorer.score(windows)
    rows, places = requests_of(windows)
    rows = rows.slice(0, REQUESTS).combine_chunks()
    kept = places[: int(_lengths(rows.column("candidate_visible").combine_chunks()).sum())]
    return Golden(rows=rows, scores={name: scores[name][kept] for name in SCORES}, source=source)


def golden_windows(dataset: Dataset, own: Dataset) -> tuple[pa.Table, str]:
    """Rows to take golden requests of, and where they are from.

    Some of the newest day that its gate has passed, drawn by their hashes; synthetic ones where the lake has
    no such day, or its rows lack what the model reads.

    Args:
        dataset: As it is declared today.
        own: As the model's run declared it.
    """
    columns = arrow_schema(own).names
    try:
        table = SamplesTable(dataset)
        table.require_columns(columns)
        for ds in reversed(table.days()):
            stands = table.standings([ds])
            used = SamplesTable(dataset, stands.earlier[ds]) if ds in stands.earlier else table
            try:
                if used is table:
                    stands.require_usable(ds)
            except NotPassedError as error:
                logger.info("no golden requests of %s: %s", ds, error)
                continue
            return used.sample(ds, WINDOWS, columns), f"samples of {ds}, version {used.version}"
    except SamplesUnavailableError as error:
        logger.warning("golden requests are synthetic: %s", error)
    rows = random_samples(own, WINDOWS, seed=1, max_candidates=12)
    return rows, "synthetic rows"


def requests_of(windows: pa.Table) -> tuple[pa.Table, Array]:
    """Each request of the rows as a row of its own, as a server gets it.

    It has the candidates of one `candidate_request_id`, and of the real-time behaviours those that one of its
    candidates sees: what comes later has not happened yet.

    Args:
        windows: Rows of the samples table, one a user and window.

    Returns:
        The requests, by row and first candidate, and the place of each of their candidates among those of
        the windows, int64 `[candidates]`.
    """
    table = windows.combine_chunks()
    counts = _lengths(table.column("candidate_request_id").combine_chunks())
    ids = table.column("candidate_request_id").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    _, codes = np.unique(ids, return_inverse=True)
    row = np.repeat(np.arange(table.num_rows), counts)
    _, first, request = np.unique(row * (len(ids) + 1) + codes, return_index=True, return_inverse=True)
    by_first = np.argsort(np.argsort(first))  # requests in the order of their first candidates
    number = by_first[request]
    places = np.argsort(number, kind="stable")
    sizes = np.bincount(number, minlength=len(first))
    rows = row[np.sort(first)]
    visible = table.column("candidate_visible").combine_chunks().flatten().to_numpy()[places]
    seen = np.maximum.reduceat(visible, sizes.cumsum() - sizes) if len(sizes) else sizes
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if name.startswith((f"{Group.CANDIDATE}_", "label_")):
            columns[name] = _lists(column, places, sizes)
        elif name.startswith(f"{Group.REALTIME}_"):
            starts = np.r_[0, _lengths(column).cumsum()][rows]
            columns[name] = _lists(column, _runs(starts, seen), seen)
        else:
            columns[name] = column.take(pa.array(rows))
    return pa.table(columns), places


def _lengths(lists: pa.ListArray) -> Array:
    lengths: Array = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    return lengths


def _lists(column: pa.ListArray, places: Array, lengths: Array) -> pa.ListArray:
    """Lists of the given lengths, of the values at `places`."""
    offsets = pa.array(np.r_[0, lengths.cumsum()], pa.int32())
    lists: pa.ListArray = pa.ListArray.from_arrays(offsets, column.flatten().take(pa.array(places)))
    return lists


def _runs(starts: Array, lengths: Sequence[int] | Array) -> Array:
    """Places `starts[i]` and the `lengths[i] - 1` after it, one run after the other."""
    lengths = np.asarray(lengths, np.int64)
    shift: Array = np.repeat(starts - (lengths.cumsum() - lengths), lengths)
    return np.arange(len(shift)) + shift
