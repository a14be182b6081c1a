"""The trailing days: what a day is compared with.

They are the latest seven earlier days whose gate passed, with the facts that their verdicts hold: a failed
day never becomes normal, and no old partition is read again. The first day of a dataset has none, so that its
rules of this kind are left out, which the verdict says.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from expectations.rules.rule import Rule, Trailing
from spark_jobs.lake import verdicts

DAYS = 7


def trailing_facts(
    dataset: str, suite: str, ds: str, preset: str | None = None
) -> dict[str, Mapping[str, Any]]:
    """Facts of the trailing days of `ds`, by day, ascending.

    Raises:
        ValueError: A verdict cannot be read.
    """
    folder = verdicts.path_of(dataset, suite, ds, preset).parent
    days = sorted(
        path.stem
        for path in folder.glob("*.json")
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", path.stem) and path.stem < ds
    )
    found: dict[str, Mapping[str, Any]] = {}
    for day in reversed(days):
        verdict = verdicts.read(folder / f"{day}.json")
        if verdict is not None and verdict["success"]:
            found[day] = verdict["facts"]
        if len(found) == DAYS:
            break
    return dict(sorted(found.items()))


def compared(rule: Rule, value: Any, trailing: Sequence[Any]) -> float | None:
    """How far a fact has moved, as the rule compares it.

    Args:
        rule: A rule with `trailing`.
        value: The fact of the day.
        trailing: The same fact of the trailing days; at least one.

    Returns:
        A ratio, an increase or a shift; None when the day's fact is unknown.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if rule.trailing in (Trailing.SHIFT, Trailing.SCORES):
        own = value[-1] - value[0] if rule.trailing is Trailing.SCORES else 0.0
        return quantile_shift(value, trailing, least_spread=own)
    usual = float(statistics.median(float(one) for one in trailing))
    if rule.trailing is Trailing.INCREASE:
        return float(value) - usual
    if usual == 0:
        return 1.0 if value == 0 else math.inf
    return float(value) / usual


def quantile_shift(
    quantiles: Sequence[float], trailing: Sequence[Sequence[float]], *, least_spread: float = 0.0
) -> float:
    """Mean distance between the quantiles of a day and of the trailing days, in spreads of the latter.

    This is the Wasserstein distance of order 1 on the given levels, normalised by the distance between the
    usual first and last quantile (5 % and 95 %); where that is zero, by the size of the usual median, and at
    least 1.

    Args:
        quantiles: The day's quantiles, ascending levels.
        trailing: Those of the trailing days, same levels; the usual quantile is the median over days.
        least_spread: Spread to take when the usual one is smaller.

    Returns:
        0 for the same distribution; a change of unit by the factor 100 gives far more than 1.
    """
    usual = [statistics.median(level) for level in zip(*trailing, strict=True)]
    spread = usual[-1] - usual[0] or max(abs(usual[len(usual) // 2]), 1.0)
    distance = statistics.fmean(abs(a - b) for a, b in zip(quantiles, usual, strict=True))
    return float(distance / max(spread, least_spread))
