"""From facts to a verdict: which rules apply to a partition, and what Great Expectations says of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expectations.judging.baseline import compared, standard_error, trailing_facts
from expectations.judging.causes import causes
from expectations.judging.validation import validate
from expectations.judging.verdict import Finding, Verdict
from expectations.rules.rule import Rule, Suite, widened

_PRESENCE = ("schema_missing", "schema_retyped", "schema_unexpected", "rows_present")


def judge(
    suite: Suite,
    ds: str,
    facts: Mapping[str, Any],
    *,
    details: Mapping[str, str] | None = None,
    there: frozenset[str] = frozenset(),
    table: str | None = None,
    version: int | None = None,
    preset: str | None = None,
) -> Verdict:
    """Judges what was measured of one partition, and adds the result to the data docs.

    Args:
        suite: The suite.
        ds: The day.
        facts: Fact name to value; a rule whose fact is missing fails. With `rows` 0 only presence is judged.
        details: Fact name to more in words.
        there: What rules may require.
        table: See `Verdict`.
        version: See `Verdict`.
        preset: The model's preset, for evaluations.

    Returns:
        The verdict; it is not written yet.

    Raises:
        NothingValidatedError: A rule has no result.
        ValueError: The verdict of a trailing day cannot be read.
    """
    baseline = trailing_facts(suite.dataset, suite.name, ds, preset)
    values: dict[str, float | None] = {}
    rules: list[Rule] = []
    left_out: dict[str, str] = {}
    for rule in suite.rules:
        trailing = [day[rule.fact] for day in baseline.values() if day.get(rule.fact) is not None]
        if why := _left_out(rule, facts, there, trailing):
            left_out[rule.name] = why
        else:
            values[rule.name] = _value(rule, facts, trailing)
            rules.append(_bounded(rule, facts, baseline))
    run = "-".join(part for part in (preset, ds) if part)
    judgements = validate(suite, tuple(rules), values, run)
    follows = causes([rule for rule in rules if not judgements[rule.name].success], values)
    words = {rule.name: (details or {}).get(rule.fact) or judgements[rule.name].error for rule in rules}
    if not _is_present(facts) and "rows_present" in words:
        words["rows_present"] = f"upstream day {ds} absent, or it is empty: there is nothing to check"
    findings = [
        Finding.of(
            rule,
            values[rule.name],
            judgements[rule.name].success,
            detail=words[rule.name],
            follows=follows.get(rule.name, ""),
        )
        for rule in rules
    ]
    return Verdict(
        dataset=suite.dataset,
        suite=suite.name,
        ds=ds,
        preset=preset,
        success=all(finding.success for finding in findings),
        table=table,
        version=version,
        baseline_days=tuple(baseline),
        left_out=left_out,
        facts=facts,
        findings=tuple(findings),
    )


def _is_present(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("rows", 0) > 0)


def _left_out(rule: Rule, facts: Mapping[str, Any], there: frozenset[str], trailing: list[Any]) -> str:
    """Why a rule does not apply to the partition; empty where it does."""
    if not _is_present(facts) and (rule.name not in _PRESENCE or rule.fact not in facts):
        return "there are no rows"
    if rule.requires and rule.requires not in there:
        return f"there is no {rule.requires}"
    if rule.trailing is not None and not trailing:
        return "no trailing day has this fact"
    return ""


def _bounded(rule: Rule, facts: Mapping[str, Any], baseline: Mapping[str, Mapping[str, Any]]) -> Rule:
    """The rule with the bounds that hold for so many users."""
    if not rule.errors:
        return rule
    trailing = [day for day in baseline.values() if day.get(rule.fact) is not None]
    return widened(rule, standard_error(rule, facts, trailing))


def _value(rule: Rule, facts: Mapping[str, Any], trailing: list[Any]) -> float | None:
    """The value that a rule bounds."""
    if rule.trailing is not None:
        return compared(rule, facts.get(rule.fact), trailing)
    value = facts.get(rule.name if rule.is_row_rule else rule.fact)
    return None if value is None else float(value)
