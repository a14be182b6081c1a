"""Verdicts: what a gate found, as JSON, one file a partition.

`$MTGR_VAR/gates/<dataset>/<suite>/<ds>.json`, for evaluations `.../evaluation/<preset>/<ds>.json`. A rerun
replaces the file by the same content, in one step. The facts of passed verdicts are what later days are
compared with.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from expectations.rules.rule import Rule
from spark_jobs.contract import locations


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
    """

    rule: str
    column: str
    description: str
    bounds: str
    observed: float | None
    success: bool
    detail: str = ""

    @classmethod
    def of(cls, rule: Rule, observed: float | None, success: bool, detail: str = "") -> Finding:
        """A finding about a rule."""
        return cls(
            rule=rule.name,
            column=rule.column,
            description=rule.description,
            bounds=rule.bounds,
            observed=observed,
            success=success,
            detail=detail,
        )

    def message(self, dataset: str, table: str, ds: str) -> str:
        """One line for the operator: day, table, column, value, limit."""
        observed = "not measured" if self.observed is None else f"{self.observed:g}"
        detail = f" ({self.detail})" if self.detail else ""
        return (
            f"{dataset} {ds}: table {table}, column {self.column}: {observed}, allowed: {self.bounds}"
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
        version: Version of the table, or of the samples, that was checked.
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
    version: int | None = None
    baseline_days: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def failed(self) -> list[str]:
        """Names of the rules that do not hold."""
        return [finding.rule for finding in self.findings if not finding.success]


def verdict_path(dataset: str, suite: str, ds: str, preset: str | None = None) -> Path:
    """Where the verdict of a partition lies."""
    folder = locations.var() / "gates" / dataset / suite
    return (folder / preset if preset else folder) / f"{ds}.json"


def write_verdict(verdict: Verdict) -> Path:
    """Writes a verdict in one step and returns its path: a reader sees the old file or the new one."""
    path = verdict_path(verdict.dataset, verdict.suite, verdict.ds, verdict.preset)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_finite(asdict(verdict)), indent=1, sort_keys=True, allow_nan=False)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def read_verdict(path: Path) -> dict[str, Any]:
    """Reads a verdict.

    Raises:
        ValueError: The file is no verdict; names it and the remedy.
    """
    try:
        verdict = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(verdict, dict) and isinstance(verdict["success"], bool):
            return verdict
    except (ValueError, KeyError):
        pass
    raise ValueError(f"{path} is no verdict of a gate: delete it and run the gate of that day again")


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become strings, which no reader takes for numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value
