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
_MEDIAN = 1.2533  # standard error of a median, in those of a mean
_OF_QUANTILES = 0.5  # see `standard_error`


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
    facts: dict[str, Mapping[str, Any]] = {}
    for day in reversed(days):
        verdict = verdicts.read(folder / f"{day}.json")
        if verdict is not None and verdict["success"]:
            facts[day] = verdict["facts"]
        if len(facts) == DAYS:
            break
    return dict(sorted(facts.items()))


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
    if rule.trailing is Trailing.NAMES:
        return float(len(set(value) - set.intersection(*(set(names) for names in trailing))))
    usual = float(statistics.median(float(one) for one in trailing))
    if rule.trailing is Trailing.INCREASE:
        return float(value) - usual
    if usual == 0:
        return 1.0 if value == 0 else math.inf
    return float(value) / usual


def standard_error(rule: Rule, facts: Mapping[str, Any], trailing: Sequence[Mapping[str, Any]]) -> float:
    """Standard error of what a rule compares, the day's and the trailing days' together.

    By users: what one user does is one draw, however many rows it has. A share is taken as if all rows of a
    user were alike, and a mean distance of quantiles has a standard error of about half a spread over the
    root of the number of users. The usual value is a median over days, whose error falls with their number.

    Args:
        rule: A rule with `trailing`.
        facts: The day's facts.
        trailing: Those of the trailing days that have the rule's fact; at least one.

    Returns:
        In units of what `compared` returns; 0 where the numbers of users are unknown.
    """
    errors = [_own_error(rule, day) for day in (facts, *trailing)]
    known = [error for error in errors[1:] if error is not None] or errors[:1]
    if errors[0] is None or known[0] is None:
        return 0.0
    usual_error = statistics.median(error for error in known if error is not None)
    usual_error *= min(1.0, _MEDIAN / math.sqrt(len(trailing)))
    error = math.hypot(errors[0], usual_error)
    if rule.trailing is not Trailing.RATIO:
        return error
    usual = float(statistics.median(float(day[rule.fact]) for day in trailing))
    return error / usual if usual else 0.0


def _own_error(rule: Rule, facts: Mapping[str, Any]) -> float | None:
    """Standard error of one day's fact; None when it is unknown."""
    if rule.trailing is Trailing.RATIO:
        error = facts.get(f"{rule.fact}_error")
        return None if error is None else float(error)
    users, value = facts.get(rule.users), facts.get(rule.fact)
    if not users or value is None:
        return None
    if rule.trailing is Trailing.INCREASE:
        share = min(max(float(value), 0.0), 1.0)
        return math.sqrt(share * (1 - share) / float(users))
    return _OF_QUANTILES / math.sqrt(float(users))


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
