"""What a gate's suite is: facts that are measured of a partition, and rules that bound them.

A suite is a value built from a dataset's declaration. Facts are SQL aggregates, so that one pass over a
partition measures all of them; Great Expectations then judges the one row of facts. Two kinds of rules:

- a row rule says when a row is `broken`; its fact counts the broken rows, none is allowed, and they can be
  extracted;
- any other rule bounds a fact of the whole partition, or how far the fact has moved from the trailing days.

Unknown means broken: a fact that is null, NaN or was not measured fails its rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class Trailing(StrEnum):
    """How a fact is compared with the same fact of the trailing days."""

    RATIO = "ratio"  # value / median of the trailing values
    INCREASE = "increase"  # value - median of the trailing values
    SHIFT = "shift"  # distance of quantiles, see baseline.quantile_shift
    SCORES = "scores"  # the same for scores, in the wider of both spreads: a young model's are narrow
    NAMES = "names"  # how many names are new: not on the list of every trailing day


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something measured of one partition.

    Args:
        name: Unique in its suite.
        sql: Aggregate over the partition's rows, in Spark SQL; empty when the gate measures it in another
            way.
        needs: Columns of the table without which it cannot be measured.
    """

    name: str
    sql: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that must hold.

    Args:
        name: Unique in its suite; the name of the expectation and of the column of facts that it reads.
        column: Column, or group of columns, that messages name.
        description: What holds when the rule holds, for people: data docs and docs/gates.md.
        low: Least allowed value; None for no bound.
        high: Greatest allowed value; None for no bound.
        broken: Row rules: Spark SQL that is true, or null, for a row that breaks the rule.
        needs: Row rules: the columns that `broken` reads.
        fact: Other rules: name of the fact that is bounded.
        trailing: How the fact is compared with the trailing days; None bounds the fact itself.
        requires: What must be there for the rule to mean anything, e.g. `champion`; else it is left out.
        limit: Field of `Limits` that the bounds are, which messages name.
        errors: Rules with `trailing`: how many standard errors the bounds are widened by.
        error: The standard error that the bounds have been widened by, see `widened`.
        users: Rules with `trailing`: fact with the number of users whose values are independent.
        explained_by: Rules that, when they do not hold, say why this one does not.

    Raises:
        ValueError: The rule bounds nothing, or is both or neither of the two kinds.
    """

    name: str
    column: str
    description: str
    low: float | None = None
    high: float | None = None
    broken: str = ""
    needs: tuple[str, ...] = ()
    fact: str = ""
    trailing: Trailing | None = None
    requires: str = ""
    limit: str = ""
    errors: float = 0.0
    error: float = 0.0
    users: str = ""
    explained_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.broken) == bool(self.fact):
            raise ValueError(f"rule {self.name!r}: give either what is broken or a fact")
        if self.low is None and self.high is None:
            raise ValueError(f"rule {self.name!r} bounds nothing: give low or high")

    @property
    def is_row_rule(self) -> bool:
        """Whether single rows break the rule."""
        return bool(self.broken)

    @property
    def bounds(self) -> str:
        """The allowed values, for people."""
        if self.is_row_rule:
            return "no row breaks it"
        unit = {None: "", Trailing.RATIO: " x the trailing days"}.get(
            self.trailing, " beyond the trailing days"
        )
        if self.errors:
            errors = f"{self.errors:g} standard errors"
            unit += f", {errors} of {self.error:.2g} included" if self.error else f", and {errors}"
        if self.low is not None and self.low == self.high:
            return f"{self.low:g}{unit}"
        low = "" if self.low is None else f"at least {self.low:g}"
        high = "" if self.high is None else f"at most {self.high:g}"
        return ", ".join(part for part in (low, high) if part) + unit


@dataclass(frozen=True, kw_only=True)
class Suite:
    """All that is measured and must hold of one kind of partition.

    Args:
        name: `events`, `samples` or `evaluation`.
        dataset: Name of the dataset.
        table: What messages call the thing that is checked.
        facts: What is measured beside the counts of row rules.
        rules: What must hold.
        columns: What facts read beside the table's columns: an expression over a row each. It is computed
            once a row, where in the SQL of many facts each of these would compute it.

    Raises:
        ValueError: There is no rule, two have one name, or a rule reads a fact that nobody measures.
    """

    name: str
    dataset: str
    table: str
    facts: tuple[Fact, ...]
    rules: tuple[Rule, ...]
    columns: tuple[Fact, ...] = ()

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError(f"suite {self.name!r} of {self.dataset!r} has no rule: it would pass anything")
        for kind, names in (
            ("rules", [rule.name for rule in self.rules]),
            ("facts", [fact.name for fact in self.facts]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(
                    f"suite {self.name!r} of {self.dataset!r}: {kind} named twice: {', '.join(twice)}"
                )
        measured = {fact.name for fact in self.facts}
        lost = sorted(rule.name for rule in self.rules if rule.fact and rule.fact not in measured)
        if lost:
            raise ValueError(
                f"suite {self.name!r}: nobody measures what these rules bound: {', '.join(lost)}"
            )

    @property
    def row_rules(self) -> tuple[Rule, ...]:
        """The rules that single rows break."""
        return tuple(rule for rule in self.rules if rule.is_row_rule)

    def measures(self) -> tuple[Fact, ...]:
        """Every fact that is a SQL aggregate, the counts of the row rules included."""
        counts = (
            Fact(name=rule.name, sql=f"count_if(coalesce({rule.broken}, true))", needs=rule.needs)
            for rule in self.row_rules
        )
        return (*(fact for fact in self.facts if fact.sql), *counts)


def widened(rule: Rule, error: float) -> Rule:
    """The rule with bounds that allow for what so many users show by chance.

    Args:
        rule: A rule with `trailing`.
        error: Standard error of what it compares.
    """
    more = rule.errors * error
    return replace(
        rule,
        low=None if rule.low is None else rule.low - more,
        high=None if rule.high is None else rule.high + more,
        error=error,
    )


def row_rule(name: str, column: str, description: str, broken: str, *needs: str) -> Rule:
    """A rule that single rows break; `needs` are the columns that `broken` reads."""
    return Rule(name=name, column=column, description=description, broken=broken, needs=needs, high=0)


def schema_facts() -> tuple[Fact, ...]:
    """Facts of a table's columns against the declared ones."""
    return tuple(Fact(name=f"schema_{what}") for what in ("missing", "retyped", "unexpected"))


def schema_rules() -> tuple[Rule, ...]:
    """Columns and types are the declared ones: nothing is cast, filled with nulls or let in unseen."""
    texts = {
        "missing": "every declared column is there",
        "retyped": "every declared column has its declared type",
        "unexpected": "there is no column that the declaration does not have",
    }
    return tuple(
        Rule(name=f"schema_{what}", column="(schema)", description=text, fact=f"schema_{what}", high=0)
        for what, text in texts.items()
    )


def schema_differences(declared: Iterable[tuple[str, str]], actual: dict[str, str]) -> dict[str, list[str]]:
    """What each schema rule finds.

    Args:
        declared: (column, Spark SQL type) as `spark_jobs.contract.features` declares them.
        actual: Column to type as the table has them.

    Returns:
        Fact name to the differences, in words.
    """
    wanted = dict(declared)
    return {
        "schema_missing": [f"{name} {kind}" for name, kind in wanted.items() if name not in actual],
        "schema_retyped": [
            f"{name} is {actual[name]} instead of {kind}"
            for name, kind in wanted.items()
            if name in actual and actual[name] != kind
        ],
        "schema_unexpected": [f"{name} {kind}" for name, kind in actual.items() if name not in wanted],
    }
