"""Verdicts: what a gate found of a partition.

Where they lie, and what they mean for later stages, is in `spark_jobs/lake/verdicts.py`. A rerun writes the
same content again. The facts of passed verdicts are what later days are compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expectations.rules.rule import Rule
from spark_jobs.contract import locations
from spark_jobs.lake import verdicts


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one rule found.

    Args:
        rule: Name of the rule.
        column: What it looks at.
        description: What should hold.
        bounds: The allowed values, for people.
        observed: The value found; None when it could not be measured.
        success: Whether the rule holds.
        detail: More, in words.
        limit: Field of `Limits` that the bounds are of; empty when they are no choice.
        follows: The rule that it follows from, see `judging/causes.py`; empty for a cause.
    """

    rule: str
    column: str
    description: str
    bounds: str
    observed: float | None
    success: bool
    detail: str = ""
    limit: str = ""
    follows: str = ""

    @classmethod
    def of(
        cls, rule: Rule, observed: float | None, success: bool, *, detail: str = "", follows: str = ""
    ) -> Finding:
        """A finding about a rule."""
        return cls(
            rule=rule.name,
            column=rule.column,
            description=rule.description,
            bounds=rule.bounds,
            observed=observed,
            success=success,
            detail=detail,
            limit=rule.limit,
            follows=follows,
        )

    @property
    def value(self) -> str:
        """The value found, the allowed ones, and the limit that says them."""
        observed = "not measured" if self.observed is None else f"{self.observed:g}"
        return f"{observed}, allowed: {self.bounds}{f' (Limits.{self.limit})' if self.limit else ''}"

    def message(self, dataset: str, table: str, ds: str) -> str:
        """One line for the operator: day, table, column, value, bounds, and the limit that says them."""
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"{dataset} {ds}: table {table}, column {self.column}: {self.value}"
            f" [{self.rule}: {self.description}]{detail}"
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate found of one partition.

    Args:
        dataset: The dataset.
        suite: The suite.
        ds: The day.
        preset: The model's preset; only evaluations have one.
        success: Whether every rule holds.
        table: Delta's id of the table; of an evaluation, the digest of its file.
        version: The commit that wrote the partition; of an evaluation, the version of samples it scored.
        allowed: Why an operator lets later stages use it although a rule does not hold.
        baseline_days: Trailing days that it was compared with.
        left_out: Rule name to why the rule was left out.
        facts: All that was measured.
        findings: One a rule.
    """

    dataset: str
    suite: str
    ds: str
    preset: str | None = None
    success: bool
    table: str | None = None
    version: int | None = None
    allowed: str = ""
    baseline_days: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether later stages may use the partition."""
        return self.success or bool(self.allowed)

    @property
    def failed(self) -> list[str]:
        """Names of the rules that do not hold and do not follow from others."""
        return [finding.rule for finding in self.findings if not (finding.success or finding.follows)]

    @property
    def page(self) -> str:
        """Its page in the data docs, relative to their folder; the index where none was made."""
        docs = locations.var() / "data_docs"
        run = f"{self.preset}-{self.ds}" if self.preset else self.ds
        pages = (docs / "validations" / f"{self.dataset}_{self.suite}" / run).glob("*/*.html")
        newest = max(pages, key=lambda page: page.parent.name, default=docs / "index.html")
        return newest.relative_to(docs).as_posix()

    def following(self, rule: str) -> list[str]:
        """Names of the rules that do not hold because this one does not."""
        return [finding.rule for finding in self.findings if finding.follows == rule]


def keep(verdict: Verdict) -> Path:
    """Writes a verdict, where `spark_jobs.lake.verdicts` reads it, and returns its path."""
    path = verdicts.path_of(verdict.dataset, verdict.suite, verdict.ds, verdict.preset)
    verdicts.write(path, _finite(asdict(verdict)))
    return path


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become strings, which no reader takes for numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
