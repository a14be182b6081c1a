"""Requests: JSON and tensors are one row, and what is not right is refused by field and rule."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from model.data.stored import StoredRows
from model.data.synthetic import random_samples
from model.serving import kserve
from model.serving.kserve import ProtocolError
from model.serving.request import DTYPES, RequestError, RequestForm
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from tests.model.malformed import malformed_rows, malformed_tensors
from tests.model.test_features import assert_same


def rows_of(dataset: Any, number: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    table = random_samples(dataset, number, seed=seed, max_candidates=9)
    return table.drop_columns(["label_click", "label_conversion"]).to_pylist()


@pytest.mark.parametrize("dataset", [FOODLOG, KUAIRAND], ids=lambda dataset: dataset.name)
def test_json_and_tensors_encode_as_the_table(dataset: Any) -> None:
    form = RequestForm(dataset, max_static=9)
    table = random_samples(dataset, 6, max_candidates=9)
    expected = form.encoder.encode(table.drop_columns(["label_click", "label_conversion"]))
    of_json = [form.of_json(json.dumps(row)) for row in rows_of(dataset)]
    body, length = kserve.encode(form.tensors_of(of_json[2]))
    of_tensors = [form.of_tensors(form.tensors_of(rows)) for rows in of_json]
    assert_same(form.encoder.encode(StoredRows.joined(of_json)), expected)
    assert_same(form.encoder.encode(StoredRows.joined(of_tensors)), expected)
    sent = form.of_tensors(kserve.decode(body, str(length))[0])
    assert_same(form.encoder.encode(sent), expected.select(torch.tensor([2])))


def test_what_is_not_read_may_be_missing() -> None:
    form = RequestForm(FOODLOG)
    row = rows_of(FOODLOG)[0]
    unread = ("ds", "window_end_ms", "candidate_time_ms", "candidate_request_id", "candidate_impression_id")
    less = {name: value for name, value in row.items() if name not in unread}
    assert_same(form.encoder.encode(form.of_row(less)), form.encoder.encode(form.of_row(row)))


def refusal(form: RequestForm, row: Any) -> str:
    with pytest.raises(ValueError, match=r"\S") as refused:
        form.encoder.encode(form.of_json(row if isinstance(row, str) else json.dumps(row)))
    return str(refused.value)


@pytest.mark.parametrize("dataset", [FOODLOG, KUAIRAND], ids=lambda dataset: dataset.name)
def test_malformed_rows_are_refused_by_field_and_rule(dataset: Any) -> None:
    form, rng = RequestForm(dataset), np.random.default_rng(3)
    rows = [row for row in rows_of(dataset, 20) if row["static_time_ms"] and row["realtime_time_ms"]]
    for case in malformed_rows(dataset, rows, rng, 300):
        told = refusal(form, case.body)
        assert case.field in told, (case, told)


def test_malformed_tensors_are_refused_by_name() -> None:
    form, rng = RequestForm(FOODLOG), np.random.default_rng(4)
    tensors = form.tensors_of(form.of_row(rows_of(FOODLOG)[1]))
    for case in malformed_tensors(tensors, rng, 200):
        with pytest.raises((ProtocolError, RequestError)) as refused:
            form.of_tensors(kserve.decode(case.body, case.length)[0])
        assert case.field in str(refused.value), (case.field, str(refused.value))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("candidate_item_id", 1.5, "candidate_item_id: 1.5 is not an integer"),
        ("candidate_item_id", True, "candidate_item_id: true is not an integer"),
        ("candidate_item_id", 2**63, "candidate_item_id has an integer of more than 64 bits"),
        ("candidate_visible", 2**32, r"candidate_visible, row .* is not a count"),
        ("candidate_price", 1e300, "candidate_price, row .* inf is not a finite number"),
        ("candidate_price", "12", 'candidate_price: "12" is not a number'),
    ],
)
def test_values_are_never_cut_to_fit(column: str, value: Any, told: str) -> None:
    row = copy.deepcopy(rows_of(FOODLOG)[0])
    row[column][0] = value
    assert re.search(told, refusal(RequestForm(FOODLOG), row))


def test_a_body_is_its_tensors() -> None:
    tensors = {
        "row": np.arange(5)[None],
        "ids": np.zeros((1, 0), np.int64),
        "numbers": np.ones((1, 3), np.float32),
    }
    body, length = kserve.encode(tensors, parameters={"timeout": 7})
    decoded, more = kserve.decode(body, length)
    assert more["parameters"] == {"binary_data_output": True, "timeout": 7}
    assert decoded.keys() == DTYPES.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(decoded[name], tensor)
        assert decoded[name].dtype == DTYPES[name]
