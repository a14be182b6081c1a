"""Rows to tensors: hashing, transforms, selection, freezing, and refusals that name the place."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.data.batch import JaggedBatch
from model.data.encoder import SampleEncoder, mix64, number_names
from model.data.stored import StoredRows, id_features, number_features
from model.data.synthetic import random_batch, random_samples
from spark_jobs.contract.features import Group
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND


@pytest.fixture(scope="module")
def table():
    return random_samples(FOODLOG, 12, seed=3)


def tensors(batch):
    yield from batch.ids.values()
    yield from batch.numbers.values()
    yield from batch.lengths.values()
    yield from (batch.realtime_visible, batch.candidate_visible, batch.labels)


def assert_same(one: JaggedBatch, other: JaggedBatch):
    for a, b in zip(tensors(one), tensors(other), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=0, atol=0)


def test_mix64_golden_vectors():
    # SplitMix64's first outputs for the states 0 and 1 (its reference implementation), and the extremes.
    ids = np.array([0, 1, -1, 2**63 - 1, -(2**63)], np.int64)
    assert [hex(value) for value in mix64(ids)] == [
        "0xe220a8397b1dcdaf",
        "0x910a2dec89025cc1",
        "0xe4d971771b652c20",
        "0x2a67d7552e039ea7",
        "0x481ec0a212a9f3db",
    ]


def test_any_64_bit_id_is_itself():
    ids = [0, 1, -2, 2**63 - 2, -(2**63), 2**31, 2**53 + 1]
    rows = random_samples(FOODLOG, len(ids), max_candidates=1, max_static=0, max_realtime=0).to_pylist()
    for row, one in zip(rows, ids, strict=True):
        row["user_id"] = row["profile_user_id"] = one
        row["candidate_item_id"] = [one]
    batch = SampleEncoder(FOODLOG).encode(rows)
    for group, name in ((Group.PROFILE, "user_id"), (Group.CANDIDATE, "item_id")):
        names = [feature.name for feature in id_features(FOODLOG, group)]
        assert batch.ids[group][names.index(name)].tolist() == ids


@pytest.mark.parametrize("dataset", [FOODLOG, KUAIRAND], ids=lambda dataset: dataset.name)
def test_rows_as_dictionaries_encode_as_the_table(dataset):
    table = random_samples(dataset, 5, seed=1)
    encoder = SampleEncoder(dataset)
    assert_same(encoder.encode(table.to_pylist()), encoder.encode(table))


def test_select_is_encoding_those_rows(table):
    encoder = SampleEncoder(FOODLOG)
    rows = [7, 0, 3]
    assert_same(encoder.encode(table).select(torch.tensor(rows)), encoder.encode(table.take(rows)))
    assert encoder.encode(table).select(torch.zeros(0, dtype=torch.int64)).num_candidates == 0


@pytest.mark.parametrize("dataset", [FOODLOG, KUAIRAND], ids=lambda dataset: dataset.name)
def test_matrices_encode_as_the_table_joined_or_sliced_or_in_chunks(dataset):
    table = random_samples(dataset, 7, seed=2)
    encoder = SampleEncoder(dataset, max_static=9)
    whole = encoder.encode(table)
    rows = [encoder.stored(table.slice(row, 1)) for row in range(table.num_rows)]
    assert_same(encoder.encode(StoredRows.joined(rows)), whole)
    assert_same(encoder.encode(rows[3]), whole.select(torch.tensor([3])))
    chunks = pa.concat_tables([table.slice(0, 2), table.slice(2, 5)])
    assert chunks.column("user_id").num_chunks == 2
    assert_same(encoder.encode(chunks), whole)


def test_numbers_are_those_of_each_feature_alone_to_the_bit():
    """Vector instructions must not make a value depend on where in a matrix it stands."""
    table = random_samples(FOODLOG, 40, seed=5, max_static=37, max_candidates=31)
    batch = SampleEncoder(FOODLOG).encode(table)
    for group in (Group.STATIC, Group.REALTIME, Group.CANDIDATE):
        for place, feature in enumerate(number_features(FOODLOG, group)):
            raw = np.concatenate(table[f"{group}_{feature.name}"].to_pylist()).astype(np.float32)
            statistic = feature.statistic
            if statistic is not None and statistic.measure.is_rate:
                share = np.clip(raw, 1e-4, 1 - 1e-4)
                expected = np.where(raw == 0, np.float32(np.nan), np.log(share / (1 - share)))
            else:
                expected = np.log1p(raw)
            encoded = batch.numbers[group][place].contiguous().numpy()
            assert encoded.tobytes() == expected.tobytes(), feature.name


@pytest.mark.parametrize("is_chunked", [False, True])
def test_errors_name_the_row_of_a_later_chunk(is_chunked):
    rows = random_samples(FOODLOG, 4, max_candidates=3, seed=1)
    broken = rows.to_pylist()
    broken[3]["candidate_price"] = None
    table = pa.Table.from_pylist(broken, schema=rows.schema)
    if is_chunked:
        table = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    with pytest.raises(ValueError, match=r"candidate_price has 1 nulls .* the first in row 73 \(user 3\)"):
        SampleEncoder(FOODLOG).encode(table, [70, 71, 72, 73])


def test_the_latest_static_behaviours_are_kept(table):
    whole, cut = SampleEncoder(FOODLOG).encode(table), SampleEncoder(FOODLOG, max_static=4).encode(table)
    assert cut.lengths[Group.STATIC].tolist() == whole.lengths[Group.STATIC].clamp(max=4).tolist()
    last = int(whole.lengths[Group.STATIC][:2].sum())
    last_cut = int(cut.lengths[Group.STATIC][:2].sum())
    assert torch.equal(whole.ids[Group.STATIC][:, last - 1], cut.ids[Group.STATIC][:, last_cut - 1])
    assert torch.equal(whole.candidate_visible, cut.candidate_visible)


def test_numbers_are_transformed():
    table = random_samples(FOODLOG, 1, max_candidates=1, max_static=0, max_realtime=0)
    row = table.to_pylist()[0] | {
        "candidate_item_ctr_7d": [0.5],
        "candidate_item_ctcvr_7d": [0.0],
        "candidate_item_impressions_7d": [np.e - 1],
    }
    batch = SampleEncoder(FOODLOG).encode([row])
    value = dict(
        zip(number_names(FOODLOG, Group.CANDIDATE), batch.numbers[Group.CANDIDATE][:, 0], strict=True)
    )
    assert value["item_ctr_7d"] == pytest.approx(0.0)
    assert value["item_ctcvr_7d"].isnan()
    assert value["item_impressions_7d"] == pytest.approx(1.0)


def test_frozen_hides_the_real_time_state_and_nothing_else(table):
    batch = SampleEncoder(FOODLOG).encode(table)
    rows = torch.arange(batch.num_rows) % 2 == 0
    frozen = batch.frozen(rows)
    of_row = rows.repeat_interleave(batch.lengths[Group.CANDIDATE])
    names = number_names(FOODLOG, Group.CANDIDATE)
    for place, name in enumerate(names):
        before, after = batch.numbers[Group.CANDIDATE][place], frozen.numbers[Group.CANDIDATE][place]
        changed = of_row & (before != 0) & name.endswith("_today")
        assert torch.equal(before != after, changed), name
    assert (frozen.candidate_visible[of_row] == 0).all()
    assert torch.equal(frozen.candidate_visible[~of_row], batch.candidate_visible[~of_row])
    assert (batch.frozen().candidate_visible == 0).all()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("profile_city", 16, r"column profile_city, row 1 \(user 1\): 16 is not a category in \[0, 16\)"),
        ("candidate_price", [np.nan], "column candidate_price, row 1 .*nan is not a finite number"),
        ("candidate_price", [np.inf], "column candidate_price, row 1 .*inf is not a finite number"),
        ("candidate_price", [-1.0], "-1.0 is not a finite number in"),
        ("candidate_price", [1.0, 2.0], "candidate_price has 2 values in row 1 .* candidate has 1"),
        ("candidate_price", [None], "candidate_price has 1 nulls inside its lists"),
        ("candidate_price", None, "candidate_price has 1 nulls where it needs lists"),
        ("profile_registered_days", None, "profile_registered_days has 1 nulls"),
        ("candidate_visible", [101], "101 is not a count of real-time events"),
        ("candidate_visible", [], r"row 1 \(user 1\) has no candidate"),
        ("label_click", [2], "2.0 is not 0 or 1"),
    ],
)
def test_broken_rows_are_refused_by_name(column, value, message):
    rows = random_samples(FOODLOG, 2, max_candidates=1).to_pylist()
    rows[1][column] = value
    with pytest.raises(ValueError, match=message):
        SampleEncoder(FOODLOG).encode(rows)


def test_missing_columns_are_named_and_labels_may_miss(table):
    encoder = SampleEncoder(FOODLOG)
    with pytest.raises(ValueError, match="lack the columns profile_city"):
        encoder.encode(table.drop(["profile_city"]))
    assert not encoder.encode(table.drop(["label_click", "label_conversion"])).labels.any()


def test_moving_keeps_values():
    batch = random_batch(FOODLOG, 2)
    assert_same(batch.to("cpu"), batch)
