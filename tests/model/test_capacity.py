"""Sizes that batches are padded to: there is always room, padding is little, sizes do not go on growing."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.batch import JaggedBatch
from model.data.capacity import Capacities, sizes_of
from model.data.synthetic import random_batch
from model.rankers.protocol import build_ranker
from model.training import captured
from model.training.ranks import process_group
from spark_jobs.contract.features import Group
from tests.model.test_training import DATASET, config

_POOL = random_batch(DATASET, 60, seed=5)


def batch_of(rows: list[int]) -> JaggedBatch:
    return _POOL.select(torch.tensor(rows, dtype=torch.int64)).laid_out()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 59), max_size=60), min_size=1, max_size=12), st.integers(1, 2000))
def test_there_is_room_everywhere_and_little_padding(batches: list[list[int]], batch_tokens: int) -> None:
    capacities = Capacities(batch_tokens=batch_tokens)
    for rows in batches:
        batch = batch_of(rows)
        room = capacities.of(batch)
        assert sizes_of(batch).fits(room)
        assert room.tokens <= max(1.07 * batch.num_tokens, batch.num_tokens + 64)
        assert capacities.of(batch) == room  # what was captured for it serves again


def test_batches_of_one_kind_share_few_sizes() -> None:
    capacities = Capacities(batch_tokens=_POOL.num_tokens // 2)
    torch.manual_seed(0)
    seen = [capacities.of(batch_of(torch.randperm(60)[:30].tolist())) for _ in range(200)]
    assert len(set(seen)) <= 12
    assert len(set(seen[100:])) <= len(set(seen[:100])) + 1


@pytest.mark.parametrize("rows", [[], [3], list(range(25))])
def test_padding_changes_no_logit_and_no_number_of_the_layout(rows: list[int]) -> None:
    batch = batch_of(rows)
    room = Capacities(batch_tokens=100).of(batch)
    padded = batch.padded(room)
    assert padded.layouts[0].num_tokens == room.tokens
    assert padded.layouts[0].offsets.shape == (room.rows + 1,)
    assert (padded.num_rows, padded.num_tokens) == (batch.num_rows, batch.num_tokens)
    assert padded.layouts[0].num_pairs == batch.layouts[0].num_pairs
    ranker = build_ranker(DATASET, config().sized(DATASET).model, 1).eval()
    widths = {group: sum(ranker.inputs.embeddings.widths(group)) for group in Group}
    rooms = {Group.PROFILE: room.rows, **room.groups}
    embedded = ranker.inputs.embeddings(batch)
    vectors = {}
    for group, some in embedded.items():
        wide = torch.full((rooms[group], widths[group]), 7.0)  # what is left of another batch
        wide[: some[0].shape[0]] = torch.cat(some, dim=1)
        split = torch.split(wide, ranker.inputs.embeddings.widths(group), dim=1)
        vectors[group] = list(split) if group is Group.PROFILE else [wide]
    with torch.no_grad():
        expected, logits = ranker(batch), ranker(padded, vectors)
    assert logits.shape == (2, room.groups[Group.CANDIDATE])
    torch.testing.assert_close(logits[:, : batch.num_candidates], expected, atol=1e-5, rtol=1e-5)


def test_what_is_filled_up_lies_in_front_and_the_rest_is_as_it_was() -> None:
    batch = batch_of([1, 2, 3])
    room = Capacities(batch_tokens=100).of(batch)
    packed, other = (batch_of(rows).padded(room).packed() for rows in ([1, 2, 3], [2]))
    assert packed.fixed_bytes == other.fixed_bytes
    views = packed.fixed_views(packed.storage[: packed.fixed_bytes].clone())
    for ours, theirs in zip(views._fixed_tensors(), packed._fixed_tensors(), strict=True):
        assert torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9))
    for group, ids in batch.ids.items():
        assert torch.equal(packed.ids[group], ids)
    assert dataclasses.replace(packed, storage=None).room == room


def test_sizes_that_go_are_freed_at_once_not_by_a_collection_during_a_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captured, "_MOST_SIZES", 1)
    model = dataclasses.replace(config().model, id_tables="hashed")
    ranker = build_ranker(DATASET, model, 1)
    tables = {id(weight) for weight in ranker.inputs.embeddings.parameters()}
    weights = [weight for weight in ranker.parameters() if id(weight) not in tables]
    on = torch.device("cpu")
    freed = []
    with process_group(on), captured.no_collection():
        assert not gc.isenabled()
        dense = captured.DensePart(ranker, weights, is_bfloat16=False, device=on)
        for rows in ([1, 2, 3], list(range(40))):
            batch = batch_of(rows)
            dense.backward(batch.padded(Capacities(batch_tokens=100).of(batch)).packed(), 1.0)
            (part,) = dense._parts.values()
            freed.append(weakref.ref(part))
            del part
        assert freed[0]() is None  # no collection has run
        assert freed[1]() is not None
    assert gc.isenabled()
