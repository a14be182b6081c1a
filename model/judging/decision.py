"""What a promotion decides upon and what it says: contenders, findings, the decision.

The rules are in `rules.py` and `comparison.py`, their thresholds in `spark_jobs/contract/limits.py`; no
MLflow, no lake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_jobs.contract.limits import Limits

TASKS = ("ctr", "ctcvr")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What the rules need to know of a registered version.

    Attributes:
        version: Its number.
        preset: Its preset.
        digest: Its digest, as the registry has it.
        seen_days: Days it was trained on.
        status: MLflow's status of the version.
    """

    version: int
    preset: str
    digest: str
    seen_days: frozenset[str]
    status: str = "READY"


@dataclass(frozen=True, kw_only=True)
class RuleOutcome:
    """What one rule found.

    Attributes:
        rule: Its name.
        holds: Whether it holds.
        is_alarm: Whether somebody has to look when it does not.
        reason: With the numbers, for people.
        is_deciding: Whether it speaks for a promotion, rather than only not against it.
    """

    rule: str
    holds: bool
    is_alarm: bool
    reason: str
    is_deciding: bool = False


def alarm(rule: str, holds: bool, reason: str) -> RuleOutcome:
    """The outcome of a rule whose breach somebody has to look at."""
    return RuleOutcome(rule=rule, holds=holds, is_alarm=True, reason=reason)


def judgement(rule: str, holds: bool, reason: str) -> RuleOutcome:
    """The outcome of a rule whose breach is a normal day."""
    return RuleOutcome(rule=rule, holds=holds, is_alarm=False, reason=reason)


def deciding(rule: str, holds: bool, reason: str) -> RuleOutcome:
    """The outcome of a rule that speaks for a promotion when it holds; its breach is a normal day."""
    return RuleOutcome(rule=rule, holds=holds, is_alarm=False, reason=reason, is_deciding=True)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Promoted or not, and why.

    Attributes:
        promoted: Whether the candidate becomes the champion: every rule holds.
        findings: One of each rule that applies.
    """

    promoted: bool
    findings: tuple[RuleOutcome, ...]

    @property
    def is_alarm(self) -> bool:
        """Whether a rule is broken that somebody has to look at."""
        return any(finding.is_alarm and not finding.holds for finding in self.findings)

    def reasons(self) -> list[str]:
        """Why not, or, when promoted, what spoke for it."""
        if self.promoted:
            return [finding.reason for finding in self.findings if finding.is_deciding]
        return [finding.reason for finding in self.findings if not finding.holds]


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that is decided upon.

    Attributes:
        evaluation: Content of `evaluation.json`.
        ds: Day that the decision is for.
        candidate: Who wants to be champion.
        champion: Who is, or None.
        settings: Thresholds.
    """

    evaluation: Mapping[str, Any]
    ds: str
    candidate: Contender
    champion: Contender | None
    settings: Limits

    def metric(self, who: str, name: str) -> float:
        """A metric of `candidate`, `champion` or `best`; NaN when it is missing, null or no number."""
        return number((self.evaluation.get(who) or {}).get(name))

    def baseline(self, who: str, name: str) -> float:
        """A metric of a baseline; NaN when it is missing, null or no number."""
        return number(((self.evaluation.get("baselines") or {}).get(who) or {}).get(name))

    @property
    def measures(self) -> dict[str, str]:
        """What the candidate is measured against, with its name in words; keys of the evaluation."""
        named = {"champion": "version {version}", "best": "version {version}, the best of the last days"}
        return {
            who: words.format(version=self.evaluation[who].get("version"))
            for who, words in named.items()
            if self.evaluation.get(who)
        }


def number(value: object) -> float:
    """A metric as JSON has it; NaN when it is missing, null or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)
