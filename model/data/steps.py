"""Steps of a day: each rank reads its part of the rows, shuffles them and cuts where its share is full.

The rows of a day, file after file, are dealt to the ranks in runs of equal length; of other rows a rank reads
nothing but what shares a row group with its own. A part is read in chunks of a bounded number of tokens, its
files in an order that the seed draws, and the rows of a chunk come in the order of a hash of (seed, pass,
user, window): for a day of one chunk the order does not depend on how files were written. What a chunk has
left when its rows no longer fill a step goes before the rows of the next, so that all steps but the last are
full.

A step is cut where the cost of its rows is nearest a rank's share (Meituan's MTGRBoost, arXiv 2505.12663):
equal numbers of rows would let one long history keep all other ranks waiting.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from model.data import reader
from model.data.ahead import ahead
from model.data.batch import JaggedBatch, nearest_cut
from model.data.capacity import Capacities
from model.data.encoder import SampleEncoder, mix64
from model.data.reader import SamplesTable, SamplesUnavailableError, order_hash, tokens_of
from spark_jobs.lake.rows import Piece, Slice

_Encoded = tuple[JaggedBatch, npt.NDArray[np.uint64], npt.NDArray[np.int64]]  # rows, their hashes and users

# What the rows of a batch cost, float64 `[B]`, in the unit of the share that a step is cut by.
Cost = Callable[[JaggedBatch], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a rank has come in its part of a day: enough to go on with the same steps.

    Attributes:
        pass_number: Pass over the day.
        number: Steps of the pass that were taken.
        row: Rows of the part, as it is read, before the oldest chunk that has rows left.
        used: Rows of that chunk that were taken, in its shuffled order.
    """

    pass_number: int = 0
    number: int = 0
    row: int = 0
    used: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step's rows for this rank.

    Attributes:
        name: `<ds>/<pass>/<step>`, to find the batch again.
        batch: This rank's rows; it may have none when other ranks have.
        num_candidates: Candidates of the step over all ranks.
        weight: Sum of their weights over all ranks, by which the loss is divided; their number where nothing
            was sampled.
        num_tokens: Tokens of the step over all ranks.
        row_hash: Hash of each of the rank's rows in (0, 1), for reproducible random choices.
        users: int64, user of each of the rank's rows.
        position: Where the rank stands after the step.
        ends: int64, candidates of the rank up to and with each of its rows, on the host; None until `ready`.
        copied: When the batch is on the device, if another stream copies it there.
    """

    name: str
    batch: JaggedBatch
    num_candidates: int
    weight: float
    num_tokens: int
    row_hash: torch.Tensor
    users: npt.NDArray[np.int64] | None = None
    position: Position = Position()
    ends: npt.NDArray[np.int64] | None = None
    copied: torch.cuda.Event | None = None

    def ready(
        self,
        frozen_share: float,
        *,
        num_parts: int = 1,
        pin: bool = False,
        capacities: Capacities | None = None,
    ) -> Step:
        """This step with all that can be done before the device has it: frozen, laid out, in one buffer.

        Args:
            frozen_share: Share of rows, by their hash, whose real-time state is frozen.
            num_parts: In how many parts the batch is computed.
            pin: Whether the buffer is page-locked.
            capacities: Sizes that a batch of one part is padded to; by default none is.
        """
        batch = self.batch.frozen(self.row_hash < frozen_share).laid_out(num_parts)
        if capacities is not None and num_parts == 1:
            batch = batch.padded(capacities.of(batch))
        ends = batch.num_candidates_B().cumsum(0).numpy()
        return dataclasses.replace(self, batch=batch.packed(pin=pin), ends=ends)


def tokens_cost(batch: JaggedBatch) -> torch.Tensor:
    """The cost of a row is its tokens."""
    return batch.tokens_B().double()


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Rows of a part, encoded, with the order in which they are taken.

    Attributes:
        first: Rows of the part before it.
        rows: Its rows as they were read.
        order: Their numbers in the order in which they are taken.
        hashes: float64, hash of each row in (0, 1), in that order.
        users: User of each row, in that order.
        costs: Cost of each row, in that order.
    """

    first: int
    rows: JaggedBatch
    order: torch.Tensor
    hashes: npt.NDArray[np.float64]
    users: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]


def part_of(slices: Sequence[Slice], rank: int, world_size: int, salt: str) -> list[Slice]:
    """The rows of a day that a rank reads, in the order in which it does.

    Args:
        slices: All files of the day.
        rank: Which rank.
        world_size: Of how many.
        salt: Draws the order of files.
    """
    total = sum(one.rows for one in slices)
    low, high = total * rank // world_size, total * (rank + 1) // world_size
    part, before = [], 0
    for one in slices:
        first, end = max(low - before, 0), min(high - before, one.rows)
        if first < end:
            part.append(dataclasses.replace(one, first=one.first + first, rows=end - first))
        before += one.rows
    drawn = np.random.default_rng(list(salt.encode())).permutation(len(part))
    return [part[place] for place in drawn]


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
    cost: Cost = tokens_cost,
    start: Position | None = None,
    threads: int = 1,
) -> Iterator[Step]:
    """Steps of one pass over a day, as far as a rank knows them: its own rows, and sums over these alone.

    Equal on every call. Chunks are read and encoded by threads of their own while steps of the ones before
    are taken.

    Args:
        table: The samples.
        encoder: Makes tensors of rows.
        ds: Day.
        pass_number: Which pass.
        batch_tokens: What a step of all ranks costs, in the unit of `cost`.
        seed: Draws the order.
        rank: Which rank's part is read.
        world_size: Of how many.
        cost: What rows cost.
        start: Where to begin; by default with the first row.
        threads: How many encode.

    Raises:
        SamplesUnavailableError: The day cannot be read or a row is not right; the message names file and row.
    """
    table.require_columns([*encoder.columns, *encoder.label_columns])
    start = start or Position(pass_number=pass_number)
    salt = f"{seed}/{ds}/{pass_number}"
    part = part_of(table.slices(ds), rank, world_size, salt)
    chunks = _chunks(table, encoder, ds, part, start.row, salt, cost, threads)
    held: deque[tuple[_Chunk, int]] = deque()
    number, used, target = start.number, start.used, batch_tokens / world_size
    for chunk in ahead(chunks, depth=1, name=f"reader of {ds}"):
        held.append((chunk, used))
        used = 0
        while sum(one.costs[taken:].sum() for one, taken in held) >= target:
            yield _take(held, target, f"{ds}/{pass_number}", number, pass_number)
            number += 1
    while held:
        yield _take(held, target, f"{ds}/{pass_number}", number, pass_number)
        number += 1


def _take(
    held: deque[tuple[_Chunk, int]], target: float, of_pass: str, number: int, pass_number: int
) -> Step:
    """Takes the rows of one step from the chunks at hand."""
    costs = np.concatenate([chunk.costs[taken:] for chunk, taken in held])
    missing = nearest_cut(costs.cumsum(), target)
    parts, hashes, users = [], [], []
    row = used = 0
    while missing:
        chunk, taken = held.popleft()
        end = min(taken + missing, len(chunk.order))
        parts.append(chunk.rows.select(chunk.order[taken:end]))
        hashes.append(chunk.hashes[taken:end])
        users.append(chunk.users[taken:end])
        missing -= end - taken
        row, used = chunk.first, end
        if end < len(chunk.order):
            held.appendleft((chunk, end))
        else:
            row, used = chunk.first + len(chunk.order), 0
    batch = JaggedBatch.joined(parts)
    return Step(
        name=f"{of_pass}/{number}",
        batch=batch,
        num_candidates=batch.num_candidates,
        weight=float(batch.weights.double().sum()),
        num_tokens=batch.num_tokens,
        row_hash=torch.from_numpy(np.concatenate(hashes)),
        users=np.concatenate(users),
        position=Position(pass_number=pass_number, number=number + 1, row=row, used=used),
    )


def _chunks(
    table: SamplesTable,
    encoder: SampleEncoder,
    ds: str,
    part: Sequence[Slice],
    skipped: int,
    salt: str,
    cost: Cost,
    threads: int,
) -> Iterator[_Chunk]:
    """The chunks of a part from a row on, encoded: pieces of a file each, by several threads."""
    first = skipped
    with ThreadPoolExecutor(threads, thread_name_prefix=f"encoder of {ds}") as pool:
        encoded: list[_Encoded] = []
        pending: deque[Future[_Encoded]] = deque()
        for piece, ends_chunk in _bounded(_pieces(table, encoder, ds, part, skipped)):
            pending.append(pool.submit(_encode, table, encoder, piece, salt))
            while pending and (ends_chunk or len(pending) > threads):
                encoded.append(pending.popleft().result())
            if ends_chunk:
                yield _chunk(first, encoded, cost)
                first += sum(rows.num_rows for rows, _, _ in encoded)
                encoded.clear()


def _encode(table: SamplesTable, encoder: SampleEncoder, piece: Piece, salt: str) -> _Encoded:
    """The tensors of a piece, a hash of each row and its user."""
    try:
        batch = encoder.encode(pa.Table.from_batches([piece.batch]), piece.numbers)
    except ValueError as error:
        raise SamplesUnavailableError(
            f"file {piece.path} of version {table.version} of {table.uri}: {error}"
        ) from error
    return batch, order_hash(piece.batch, salt), piece.batch.column("user_id").to_numpy()


def name_what_is_wrong(table: SamplesTable, encoder: SampleEncoder, ds: str) -> None:
    """Encodes all rows of a day, for the error of one that is not right.

    Raises:
        SamplesUnavailableError: As `steps_of`.
    """
    for piece in _pieces(table, encoder, ds, table.slices(ds), 0):
        _encode(table, encoder, piece, "")


def _chunk(
    first: int,
    parts: Sequence[_Encoded],
    cost: Cost,
) -> _Chunk:
    rows = JaggedBatch.joined([batch for batch, _, _ in parts])
    hashes, users = (np.concatenate([one[place] for one in parts]) for place in (1, 2))
    order = np.lexsort((users, hashes))
    return _Chunk(
        first=first,
        rows=rows,
        order=torch.from_numpy(order),
        hashes=mix64(hashes[order].view(np.int64)) / 2.0**64,
        users=users[order],
        costs=cost(rows).numpy()[order],
    )


def _pieces(
    table: SamplesTable, encoder: SampleEncoder, ds: str, part: Sequence[Slice], skipped: int
) -> Iterator[Piece]:
    columns = [*encoder.columns, *encoder.label_columns]
    for one in part:
        if skipped >= one.rows:
            skipped -= one.rows
            continue
        rest = dataclasses.replace(one, first=one.first + skipped, rows=one.rows - skipped)
        skipped = 0
        yield from table.read(ds, rest, columns)


def _bounded(pieces: Iterator[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Pieces, cut behind the row by which a chunk has its tokens, and whether the chunk ends there."""
    held: Piece | None = None
    tokens = 0
    for piece in pieces:
        if held is not None:
            yield held, False
        held = piece
        while held is not None:
            ends = tokens_of(held.batch).cumsum() + tokens
            rows = int(np.searchsorted(ends, reader.CHUNK_TOKENS)) + 1
            if rows > len(ends):
                tokens = int(ends[-1])
                break
            yield _rows(held, 0, rows), True
            held, tokens = _rows(held, rows, len(ends)) if rows < len(ends) else None, 0
    if held is not None:
        yield held, True


def _rows(piece: Piece, first: int, end: int) -> Piece:
    return Piece(
        path=piece.path, batch=piece.batch.slice(first, end - first), numbers=piece.numbers[first:end]
    )
