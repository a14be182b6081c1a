"""One cause is reported once: which rules do not hold only because another does not.

A rule follows from another one that does not hold, in this order:

- it could not be measured, and columns are missing or of another type;
- the other one is declared to explain it (`Rule.explained_by`): conversions from clicks, volume from hours;
- both are about the same column, or about the values of the same feature in several groups.

The cause is what stands first in its suite; what follows is marked in the verdict and named behind its cause.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from expectations.rules.rule import Rule
from spark_jobs.contract.features import Group

_OF_VALUES = ("_values", "_drift")


def causes(broken: Sequence[Rule], values: Mapping[str, float | None]) -> dict[str, str]:
    """What each broken rule follows from.

    Args:
        broken: Rules that do not hold, in the order of their suite.
        values: Rule name to value; None when it was not measured.

    Returns:
        Rule name to the name of its cause, for those that follow from another.
    """
    names = {rule.name for rule in broken}
    schema = next((name for name in ("schema_missing", "schema_retyped") if name in names), "")
    first: dict[str, str] = {}
    causes: dict[str, str] = {}
    for rule in broken:
        place = _place(rule)
        explained = next((name for name in rule.explained_by if name in names), "")
        cause = schema if schema and values.get(rule.name) is None else explained or first.get(place, "")
        if cause:
            causes[rule.name] = cause
        if not place.startswith("("):
            first.setdefault(place, rule.name)
    return {name: _root(name, causes) for name in causes}


def _place(rule: Rule) -> str:
    """What a rule is about: its column or, for a feature's values, the feature."""
    group, _, feature = rule.column.partition("_")
    is_feature = rule.name.endswith(_OF_VALUES) and group in {str(one) for one in Group}
    return feature if is_feature else rule.column


def _root(name: str, causes: Mapping[str, str]) -> str:
    seen = {name}
    while name in causes and causes[name] not in seen:
        name = causes[name]
        seen.add(name)
    return name
