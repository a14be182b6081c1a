"""From the samples table to steps: parts of ranks, order, cuts, going on, and rows that are not right."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import write_deltalake

from model.data.ahead import Ahead
from model.data.batch import token_cuts, token_shares
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable, SamplesUnavailableError
from model.data.steps import Position, Step, part_of, steps_of
from model.data.synthetic import random_samples
from spark_jobs.contract import locations
from spark_jobs.contract.features import Group
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake.rows import DataFile, Slice

DAY = "2026-03-02"
ENCODER = SampleEncoder(FOODLOG)


@pytest.fixture(autouse=True)
def _lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTGR_LAKE", str(tmp_path))


def write(*tables: pa.Table) -> SamplesTable:
    """Writes each table as a file of the day."""
    for table in tables:
        write_deltalake(locations.table("foodlog", "samples"), table, partition_by=["ds"], mode="append")
    return SamplesTable(FOODLOG)


def read(table: SamplesTable, tokens: int = 300, **more: Any) -> list[Step]:
    settings: dict[str, Any] = {"pass_number": 0, "batch_tokens": tokens, "seed": 1, **more}
    return list(steps_of(table, ENCODER, DAY, **settings))


def users(steps: list[Step]) -> list[int]:
    return [int(user) for step in steps for user in step.users]  # type: ignore[union-attr]


@pytest.mark.parametrize("chunk_tokens", [100, 1000, 10**6])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_read_every_row_once(
    monkeypatch: pytest.MonkeyPatch, chunk_tokens: int, world_size: int
) -> None:
    monkeypatch.setattr("model.data.reader.CHUNK_TOKENS", chunk_tokens)
    rows = random_samples(FOODLOG, 61, seed=1)
    table = write(rows.slice(0, 20), rows.slice(20, 1), rows.slice(21))
    parts = [read(table, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(user for part in parts for user in users(part)) == list(range(61))
    expected = ENCODER.encode(rows)
    sizes = dict(zip(range(61), expected.tokens_B().tolist(), strict=True))
    for part in parts:
        for step in part:
            assert step.batch.tokens_B().tolist() == [sizes[user] for user in step.users]  # type: ignore[union-attr]
            assert step.num_tokens == step.batch.num_tokens == sum(step.batch.tokens_B().tolist())
        # All steps but the last are full: a chunk's rest goes before the next chunk's rows.
        longest = max(sizes.values())
        full = [step.num_tokens for step in part[:-1]]
        assert all(abs(tokens - 300 / world_size) <= longest / 2 for tokens in full), full


def test_a_part_of_a_day_is_all_that_a_rank_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_samples(FOODLOG, 40, seed=1)
    table = write(*(rows.slice(first, 10) for first in range(0, 40, 10)))
    encoded: list[int] = []
    encode = SampleEncoder.encode

    def noted(encoder: SampleEncoder, rows: pa.Table, *more: Any) -> Any:
        encoded.append(rows.num_rows)
        return encode(encoder, rows, *more)

    monkeypatch.setattr(SampleEncoder, "encode", noted)
    read(table, rank=1, world_size=4)
    assert encoded == [10]


def test_a_part_is_cut_by_rows_and_its_files_come_in_a_drawn_order() -> None:
    files = [
        Slice(file=DataFile(path=f"{number}", partition=DAY), first=0, rows=10 + number)
        for number in range(8)
    ]
    every = []
    for rank in range(3):
        part = part_of(files, rank, 3, "salt")
        assert part == part_of(files, rank, 3, "salt")
        every += [(one.file.path, row) for one in part for row in range(one.first, one.first + one.rows)]
        assert abs(sum(one.rows for one in part) - sum(one.rows for one in files) / 3) < 1
    assert sorted(every) == [(f"{number}", row) for number in range(8) for row in range(10 + number)]
    orders = {tuple(one.file.path for one in part_of(files, 0, 1, f"{pass_}")) for pass_ in range(3)}
    assert len(orders) == 3


def test_the_order_of_a_chunk_does_not_depend_on_its_files_but_on_the_pass(tmp_path: Path) -> None:
    rows = random_samples(FOODLOG, 40, seed=1)
    one = users(read(write(rows)))
    assert one != sorted(one)
    assert users(read(SamplesTable(FOODLOG), pass_number=1)) != one
    assert users(read(SamplesTable(FOODLOG), seed=2)) != one
    (tmp_path / "foodlog").rename(tmp_path / "first")
    shuffled = rows.take(pa.array(np.random.default_rng(0).permutation(40)))
    assert users(read(write(shuffled.slice(0, 13), shuffled.slice(13)))) == one


@pytest.mark.parametrize("chunk_tokens", [150, 400, 10**6])
def test_from_every_position_come_the_steps_that_came_after_it(
    monkeypatch: pytest.MonkeyPatch, chunk_tokens: int
) -> None:
    monkeypatch.setattr("model.data.reader.CHUNK_TOKENS", chunk_tokens)
    rows = random_samples(FOODLOG, 50, seed=2)
    table = write(rows.slice(0, 17), rows.slice(17))
    whole = read(table, 200)
    assert len(whole) > 4
    for place, step in enumerate(whole):
        rest = read(table, 200, start=step.position)
        assert users(rest) == users(whole[place + 1 :])
        assert [one.name for one in rest] == [one.name for one in whole[place + 1 :]]
        for one, other in zip(rest, whole[place + 1 :], strict=True):
            assert one.position == other.position
            assert torch.equal(one.row_hash, other.row_hash)
            assert torch.equal(one.batch.ids[Group.STATIC], other.batch.ids[Group.STATIC])
    assert read(table, 200, start=Position(row=50)) == []


def test_rows_of_a_chunk_are_bounded_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.reader.CHUNK_TOKENS", 500)
    rows = random_samples(FOODLOG, 90, seed=2)
    table = write(rows)
    assert sum(chunk.num_rows for chunk in table.chunks(DAY)) == 90
    held: list[int] = []
    chunk = SampleEncoder.encode

    def noted(encoder: SampleEncoder, rows: pa.Table, *more: Any) -> Any:
        batch = chunk(encoder, rows, *more)
        held.append(sum(batch.lengths[group].sum().item() for group in batch.lengths) + batch.num_rows)
        return batch

    monkeypatch.setattr(SampleEncoder, "encode", noted)
    read(table)
    longest = 20 + 6 + 5 + 1
    assert len(held) > 3
    assert all(500 <= tokens < 500 + longest for tokens in held[:-1])


def test_cuts_are_nearest_the_target() -> None:
    assert token_cuts(torch.tensor([4, 4, 4, 4]), 9) == [2, 4]
    assert token_cuts(torch.tensor([4, 4, 4, 4]), 11) == [3, 4]
    assert token_cuts(torch.tensor([100, 1, 1]), 10) == [1, 3]
    assert token_cuts(torch.zeros(0, dtype=torch.int64), 10) == []


def test_shares_are_about_equal_and_may_be_empty() -> None:
    assert token_shares(torch.tensor([4, 4, 4, 4]), 2) == [2, 4]
    assert token_shares(torch.tensor([9, 1, 1, 1]), 2) == [1, 4]
    assert token_shares(torch.tensor([5]), 3) == [0, 1, 1]
    assert token_shares(torch.zeros(0, dtype=torch.int64), 2) == [0, 0]
    tokens = torch.randint(1, 100, (200,), generator=torch.Generator().manual_seed(0))
    ends = token_shares(tokens, 4)
    shares = [int(part.sum()) for part in tokens.tensor_split(ends[:-1])]
    assert max(shares) - min(shares) <= 100


# One row is broken, the second of the day's second file.
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"candidate_price": [np.nan]}, "column candidate_price, row 1 .*: nan is not a finite number in"),
    "lists": ({"candidate_price": [1.0, 2.0]}, "candidate_price has 2 values in row 1 .* candidate has 1"),
    "null": ({"candidate_price": [None]}, "candidate_price has 1 nulls inside its lists, the first in row 1"),
    "no list": ({"static_price": None}, "static_price has 1 nulls where it needs lists, the first in row 1"),
    "no user": ({"user_id": None}, "column user_id has 1 nulls, the first in row 1"),
    "order": ({"static_time_ms": [5, 3]}, "static_time_ms, row 1 .*: 3 is not at or after the one before it"),
    "future": ({"static_time_ms": [1, 2**50]}, "static_time_ms, row 1 .* is not before the window's start"),
    "past": ({"realtime_time_ms": [1]}, "realtime_time_ms, row 1 .*: 1 is not at or after the window"),
    "id -1": ({"candidate_item_id": [-1]}, "candidate_item_id, row 1 .*: -1 is not an id: -1 and 2.63 - 1"),
    "greatest id": ({"profile_user_id": 2**63 - 1}, f"profile_user_id, row 1 .*: {2**63 - 1} is not an id"),
    "static": ({"static_time_ms": [1] * 1001}, "row 1 .* has 1001 static behaviours; at most 1000"),
    "realtime": ({"realtime_time_ms": [1] * 101}, "row 1 .* has 101 realtime behaviours; at most 100"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_row_that_is_not_right_is_named_with_its_file(case: str) -> None:
    changes, message = BROKEN[case]
    rows = random_samples(FOODLOG, 6, max_static=0, max_realtime=0, max_candidates=1)
    row = rows.to_pylist()[4]
    for name in changes:  # what is not broken has as many values
        if isinstance(changes[name], list):
            group = name.split("_")[0]
            size = len(changes[name]) if case not in ("lists", "static", "realtime") else 0
            for other in row:
                if other.startswith(f"{group}_") and isinstance(row[other], list) and size:
                    row[other] = (
                        [0] * size if rows.schema.field(other).type != pa.list_(pa.string()) else ["a"]
                    )
    broken = pa.Table.from_pylist([row | changes], schema=rows.schema)
    table = write(
        rows.slice(0, 3), pa.concat_tables([rows.slice(3, 1), broken, rows.slice(5)]).combine_chunks()
    )
    files = {one.path for one in table._rows.files([DAY])}
    with pytest.raises(SamplesUnavailableError, match=message) as refused:
        read(table)
    assert sum(path in str(refused.value) for path in files) == 1
    assert f"version {table.version} of {table.uri}" in str(refused.value)


def test_a_missing_column_is_named() -> None:
    rows = random_samples(FOODLOG, 3)
    with pytest.raises(SamplesUnavailableError, match=r"version 0 of .* lacks the columns profile_city;"):
        read(write(rows.drop(["profile_city"])))


def test_a_column_of_another_type_is_named() -> None:
    rows = random_samples(FOODLOG, 3)
    place = rows.column_names.index("profile_city")
    text = rows.set_column(place, "profile_city", pa.array(["a", "b", "c"]))
    with pytest.raises(
        SamplesUnavailableError, match="column profile_city is string, where it must be int32"
    ):
        read(write(text))


def files_of(table: SamplesTable) -> list[Path]:
    return [Path(table.uri, one.path) for one in table._rows.files([DAY])]


def test_files_that_cannot_be_read_are_named() -> None:
    rows = random_samples(FOODLOG, 30)
    table = write(rows.slice(0, 20), rows.slice(20))
    whole, cut = files_of(table)
    content = cut.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        SamplesUnavailableError, match=f"cannot read day {DAY} .* file .*{cut.name}.* damaged"
    ):
        read(table)
    cut.write_bytes(content)
    whole.unlink()
    with pytest.raises(SamplesUnavailableError, match=f"cannot read day {DAY} .*{whole.name}.*vacuumed"):
        read(table)


def test_a_partition_without_rows_is_named() -> None:
    rows = random_samples(FOODLOG, 3)
    table = write(rows)
    (path,) = files_of(table)
    pq.write_table(rows.slice(0, 0).drop(["ds"]), path)
    with pytest.raises(SamplesUnavailableError, match=f"day {DAY} .* has files without any row"):
        read(table)
    with pytest.raises(SamplesUnavailableError, match="has no samples of day 2026-03-09"):
        list(steps_of(table, ENCODER, "2026-03-09", pass_number=0, batch_tokens=100, seed=1))


def test_what_is_made_ahead_comes_in_order_and_ends_with_its_error() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise ValueError("after five")

    with Ahead(numbers(), depth=2, name="test") as some:
        items = iter(some)
        assert [next(items) for _ in range(5)] == list(range(5))
        with pytest.raises(ValueError, match="after five"):
            next(items)


def test_no_more_is_made_ahead_than_asked_for_and_nothing_after_the_end() -> None:
    made: list[int] = []
    closed = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            closed.set()

    with Ahead(numbers(), depth=2, name="test") as some:
        assert next(iter(some)) == 0
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(made) == 4  # one taken, two that wait, one in hand
    assert closed.is_set()
    assert len(made) == 4


def test_a_batch_in_one_buffer_is_the_batch() -> None:
    batch = ENCODER.encode(random_samples(FOODLOG, 9, seed=4)).laid_out(3)
    packed = batch.packed()
    assert packed.storage is not None
    start, size = packed.storage.data_ptr(), packed.storage.numel()
    for one, other in zip(batch._tensors(), packed._tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert not one.numel() or start <= other.data_ptr() < start + size
    assert packed.to("cpu") is packed
    moved = packed.to("meta")
    assert moved.storage is not None
    assert [tensor.shape for tensor in moved._tensors()] == [tensor.shape for tensor in batch._tensors()]


def test_parts_are_the_rows_that_were_laid_out() -> None:
    batch = ENCODER.encode(random_samples(FOODLOG, 9, seed=4))
    laid = batch.laid_out(3).packed()
    ends = [where.rows[1] for where in laid.layouts]
    assert ends == token_shares(batch.tokens_B(), 3)
    first = 0
    for part, end in zip(laid.parts(), ends, strict=True):
        alone = batch.select(torch.arange(first, end)).laid_out()
        for one, other in zip(part._tensors(), alone._tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        assert part.layout().longest == alone.layout().longest
        assert part.layout().num_pairs == alone.layout().num_pairs
        first = end
    with pytest.raises(ValueError, match="laid out in 3 parts"):
        laid.layout()
    (whole,) = batch.laid_out().layouts
    assert sum(where.num_pairs for where in laid.layouts) == whole.num_pairs
    position = torch.arange(whole.num_tokens) - whole.offsets[:-1].repeat_interleave(whole.offsets.diff())
    sees = whole.visible_end + (position >= whole.visible_end)  # itself beside those before it
    assert whole.num_pairs == int(sees.sum())
    assert dataclasses.replace(batch, layouts=()).layout().num_pairs == whole.num_pairs
