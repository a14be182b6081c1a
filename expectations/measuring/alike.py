"""Features that say nothing of their own: one value all day, or in every row the value of another one.

A column that is constant, or equal to another to the last digit, is a fault of the source or of the
declaration: a default that was never filled, a column taken twice, a window that is cut without a word. What
may be so by nature is left out:

- `weekday`, which is one on a day, and what `Limits.constant` names;
- statistics while the log is young: two windows are equal until the log is older than the shorter one; and on
  a day of few candidates;
- statistics that are constant, such as sparse counts that are zero in a small log, unless they varied on the
  trailing days: they are a fact of their own (`constant_statistics`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from expectations.rules.samples import HASH, LEAST, MOST, compared_columns
from spark_jobs.contract.features import Dataset, FeatureSpec

# Candidates: of a few, all may have one value; of fewer than enough, two sparse counts may be equal.
_FEW, _ENOUGH = 100, 1_000


def look_alikes(dataset: Dataset, facts: dict[str, Any], age: int) -> dict[str, str]:
    """Adds the facts `constant_features`, `constant_statistics` and `equal_features`.

    Args:
        dataset: Dataset.
        facts: What one pass has measured of the day; what it holds of single columns is taken out.
        age: Days of samples before the day.

    Returns:
        Fact name to the columns in words.
    """
    measured = {
        column: (feature, *(facts.pop(f"{column}{kind}", None) for kind in (LEAST, MOST, HASH)))
        for column, feature in compared_columns(dataset)
    }
    constant = sorted(c for c, (_, least, most, _) in measured.items() if least is not None and least == most)
    counted = [column for column in constant if measured[column][0].statistic is not None]
    plain = [c for c in constant if c not in counted and not _may_be(dataset, measured[c][0])]
    equal = [pair for pair in _pairs(dataset, measured) if not set(constant).intersection(pair)]
    candidates = facts.get("candidates") or 0
    if candidates < _FEW:
        plain, equal = [], []
    if candidates < _ENOUGH:
        equal = [pair for pair in equal if measured[pair[0]][0].statistic is None]
    equal = [pair for pair in equal if not _is_young(measured[pair[0]][0], measured[pair[1]][0], age)]
    facts |= {
        "constant_features": len(plain),
        "constant_statistics": counted,
        "equal_features": len(equal),
    }
    return {
        "constant_features": ", ".join(plain),
        "constant_statistics": ", ".join(counted),
        "equal_features": ", ".join(f"{one} = {other}" for one, other in equal),
    }


def _may_be(dataset: Dataset, feature: FeatureSpec) -> bool:
    return feature.name == "weekday" or feature.name in dataset.limits.constant


def _pairs(dataset: Dataset, measured: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns of one group with the same values in all rows, each with the first that has them."""
    first: dict[tuple[str, Any], str] = {}
    for column, (feature, _, _, fingerprint) in measured.items():
        key = (column.split("_", 1)[0], fingerprint)
        if fingerprint is None or feature.name in dataset.limits.constant:
            continue
        if key in first:
            yield first[key], column
        first.setdefault(key, column)


def _is_young(one: FeatureSpec, other: FeatureSpec, age: int) -> bool:
    """Whether two statistics are equal because the log is no older than the shorter of their windows."""
    if one.statistic is None or other.statistic is None:
        return False
    return age <= min(one.statistic.days, other.statistic.days)
