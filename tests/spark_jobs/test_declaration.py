"""The declaration that a run keeps: read as it was written, told from today's by what a model reads."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from spark_jobs.contract.datasets import DATASETS
from spark_jobs.contract.declaration import differences, from_dict, to_dict, unreadable, with_ranges_of
from spark_jobs.contract.features import Dataset, FeatureSpec
from spark_jobs.contract.foodlog import FOODLOG


def changed(name: str, **fields: Any) -> Dataset:
    """foodlog with other fields of one feature."""
    features = tuple(
        dataclasses.replace(feature, **fields) if feature.name == name else feature
        for feature in FOODLOG.features
    )
    assert features != FOODLOG.features
    return dataclasses.replace(FOODLOG, features=features)


def without(name: str) -> Dataset:
    return dataclasses.replace(FOODLOG, features=tuple(f for f in FOODLOG.features if f.name != name))


def of(name: str) -> FeatureSpec:
    return next(feature for feature in FOODLOG.features if feature.name == name)


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_a_declaration_is_read_as_it_was_written(dataset: Dataset) -> None:
    read = from_dict(json.loads(json.dumps(to_dict(dataset))))
    assert read.features == dataset.features
    assert to_dict(read) == to_dict(dataset)
    assert differences(read, dataset) == ()


@pytest.mark.parametrize(
    "other",
    [
        changed("price", description="what it costs"),
        changed("price", high=20_000),
        changed("price", high=500),
        dataclasses.replace(FOODLOG, conversion="an order"),
        dataclasses.replace(FOODLOG, late_days=5),
    ],
)
def test_what_no_model_reads_is_no_difference(other: Dataset) -> None:
    assert differences(FOODLOG, other) == ()
    assert differences(other, FOODLOG) == ()


@pytest.mark.parametrize(
    ("other", "difference", "can_score"),
    [
        (without("weather"), "feature weather is no longer declared", False),
        (
            changed("price", low=-1),
            "feature price means something else now (may be negative False -> True)",
            False,
        ),
        (changed("price", low=1), "feature price means something else now (nearest to zero 0.0 -> 1)", False),
        (
            changed("weather", cardinality=9),
            "feature weather means something else now (cardinality 8 -> 9)",
            False,
        ),
        (dataclasses.replace(FOODLOG, actions=("order", "click")), "actions was ('click', 'order')", False),
        (dataclasses.replace(FOODLOG, utc_offset_hours=8), "utc_offset_hours was 0 and is 8", False),
        (dataclasses.replace(FOODLOG, utc_offset_hours=5.5), "utc_offset_hours was 0 and is 5.5", False),
        (dataclasses.replace(FOODLOG, attribution_ms=1), "attribution_ms was 7200000 and is 1", True),
        (
            dataclasses.replace(FOODLOG, features=(*FOODLOG.features[1:], FOODLOG.features[0])),
            "the features are in another order",
            True,
        ),
    ],
)
def test_what_a_model_reads_is_named(other: Dataset, difference: str, can_score: bool) -> None:
    assert any(text.startswith(difference) for text in differences(FOODLOG, other)), differences(
        FOODLOG, other
    )
    assert (unreadable(FOODLOG, other) == ()) is can_score


def test_a_feature_that_a_model_does_not_know_is_left_out_by_it() -> None:
    assert differences(without("weather"), FOODLOG) == ("feature weather is new",)
    assert unreadable(without("weather"), FOODLOG) == ()


def test_ranges_are_those_of_today() -> None:
    own = without("weather")
    widened = with_ranges_of(own, changed("price", high=20_000))
    assert {f.name: f.high for f in widened.features}["price"] == 20_000
    assert [f.name for f in widened.features] == [f.name for f in own.features]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["features"][3].update(size=3), "declaration.features.3. is .*fields are name, owner"),
        (lambda v: v["features"][3].pop("name"), r"declaration.features\[3\]: .*missing.*'name'"),
        (lambda v: v["features"][3].update(kind="word"), "'word' is not a valid Kind"),
        (
            lambda v: v["features"][3].update(cardinality="8"),
            r"features\[3\].cardinality is '8'; int is expected",
        ),
        (lambda v: v.update(features="all"), "declaration.features is 'all'; a list is expected"),
        (lambda v: v.pop("actions"), "declaration: .*missing.*'actions'"),
    ],
)
def test_what_is_no_declaration_is_refused_by_name(change: Any, message: str) -> None:
    values = json.loads(json.dumps(to_dict(FOODLOG)))
    change(values)
    with pytest.raises(ValueError, match=message):
        from_dict(values)
