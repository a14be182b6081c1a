"""Features that are constant, or equal to another one; and statistics of a log that is young."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from expectations.measuring.alike import look_alikes
from expectations.measuring.facts import measure
from expectations.rules.samples import HASH, LEAST, MOST, compared_columns, samples_suite
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.tables import sample_columns
from tests.expectations.mini import DS, MINI
from tests.expectations.mini import sample as valid
from tests.frames import frame


def facts_of(dataset: Dataset, **changes: Any) -> dict[str, Any]:
    """What one pass measures of columns that all vary and differ, but for `changes`: column to (.., hash)."""
    facts: dict[str, Any] = {"candidates": 5_000}
    for number, (column, _) in enumerate(compared_columns(dataset)):
        least, most, fingerprint = changes.get(column, (0, 1, f"{number}"))
        facts |= {f"{column}{LEAST}": least, f"{column}{MOST}": most, f"{column}{HASH}": fingerprint}
    return facts


def test_a_feature_with_one_value_all_day_is_noticed_and_named() -> None:
    facts = facts_of(
        FOODLOG, candidate_price=(5.0, 5.0, "c"), candidate_weekday=(2, 2, "d"), profile_city=(1, 1, "e")
    )
    details = look_alikes(FOODLOG, facts, 9)
    assert (facts["constant_features"], details["constant_features"]) == (1, "candidate_price")
    assert not [name for name in facts if name.endswith((LEAST, MOST, HASH))]


def test_two_features_that_are_equal_to_the_last_digit_are_noticed_and_named() -> None:
    facts = facts_of(FOODLOG, candidate_merchant_ctr_30d=(0, 1, "x"), candidate_merchant_ctr_1d=(0, 1, "x"))
    details = look_alikes(FOODLOG, facts, 9)
    assert facts["equal_features"] == 1
    assert details["equal_features"] == "candidate_merchant_ctr_1d = candidate_merchant_ctr_30d"


@pytest.mark.parametrize(("age", "equal"), [(0, 0), (1, 0), (2, 1)])
def test_two_windows_are_equal_until_the_log_is_older_than_the_shorter_one(age: int, equal: int) -> None:
    facts = facts_of(FOODLOG, candidate_merchant_ctr_30d=(0, 1, "x"), candidate_merchant_ctr_1d=(0, 1, "x"))
    look_alikes(FOODLOG, facts, age)
    assert facts["equal_features"] == equal


def test_what_may_be_so_is_left_out() -> None:
    same = {"candidate_price": (0, 1, "x"), "candidate_distance_km": (0, 1, "x")}
    facts = facts_of(FOODLOG, **same)
    look_alikes(FOODLOG, facts, 9)
    assert facts["equal_features"] == 1
    limits = dataclasses.replace(FOODLOG.limits, constant=("price",))
    facts = facts_of(FOODLOG, **same, candidate_item_id=(4, 4, "i"))
    look_alikes(dataclasses.replace(FOODLOG, limits=limits), facts, 9)
    assert (facts["equal_features"], facts["constant_features"]) == (0, 1)
    few = facts_of(FOODLOG, candidate_price=(5.0, 5.0, "c")) | {"candidates": 50}
    look_alikes(FOODLOG, few, 9)
    assert few["constant_features"] == 0


def test_a_statistic_that_is_constant_is_told_apart() -> None:
    """Conversions by user and item are all zero in a small log; that is for the trailing days to say."""
    name = "candidate_user_item_conversions_7d"
    facts = facts_of(FOODLOG, **{name: (0.0, 0.0, "z")})
    look_alikes(FOODLOG, facts, 9)
    assert (facts["constant_features"], facts["constant_statistics"]) == (0, [name])


def test_columns_are_compared_row_by_row(spark: Any) -> None:
    rows = [valid(user_id=n, profile_age=30.0 + n) for n in range(3)]
    for n, row in enumerate(rows):
        row["candidate_price"] = [1.0 * n, 2.0, 3.0]
        row["candidate_distance"] = [1.0 * n, 2.0, 3.0]
        row["candidate_item_id"] = [n, 2, 3]
    rows[2]["candidate_item_id"] = [3, 2, 2]  # the same values in another order
    df = frame(spark, rows, sample_columns(MINI))
    facts = measure(df, samples_suite(MINI, MINI.limits), "ds")[DS] | {"candidates": 5_000}
    details = look_alikes(MINI, facts, 9)
    assert details["equal_features"] == "candidate_price = candidate_distance"
    assert "candidate_hour" in details["constant_features"]
    assert "profile_age" not in details["constant_features"]
