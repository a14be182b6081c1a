"""What a promotion decides upon and what it says: settings, contenders, findings, the decision.

The rules are in `promotion_rules.py`; neither file needs MLflow or the lake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASKS = ("ctr", "ctcvr")


@dataclass(frozen=True, kw_only=True)
class PromotionSettings:
    """Thresholds of the rules.

    Args:
        primary: Metric that decides.
        secondary: Metric that must not fall much either.
        max_loss: How much lower than the champion's the primary metric of the same preset may be. Seeds
            differ by .002 to .006 GAUC, so that a smaller number would keep old models by chance.
        max_loss_secondary: The same for the secondary metric.
        min_gain_of_new_preset: How much higher the primary metric must be when the preset differs.
        min_users: Least users that the GAUC of each task counts.
        copc: Least and greatest labels over predicted labels, of each task.
        max_segment_loss: How much lower a segment's primary and secondary metric may be.
        min_segment_users: Segments whose GAUC counts fewer users are not judged.
        min_auc: Least AUC of each task: a model that ranks at random is broken.
        max_auc_gain: Greatest believable gain of AUC or GAUC over the champion: beyond, it is a leak.
        max_over_oracle: How much the AUC may exceed that of the true probabilities, where these are known.
        ceilings: Greatest believable value by metric: beyond, it is a leak.
    """

    primary: str = "ctcvr_gauc"
    secondary: str = "ctr_gauc"
    max_loss: float = 0.01
    max_loss_secondary: float = 0.01
    min_gain_of_new_preset: float = 0.0
    min_users: int = 20
    copc: tuple[float, float] = (0.6, 1.7)
    max_segment_loss: float = 0.05
    min_segment_users: int = 100
    min_auc: float = 0.5
    max_auc_gain: float = 0.1
    max_over_oracle: float = 0.02
    ceilings: Mapping[str, float] = field(
        default_factory=lambda: {"ctr_auc": 0.95, "ctcvr_auc": 0.97, "ctr_gauc": 0.9, "ctcvr_gauc": 0.95}
    )


_KUAIRAND = {"ctr_auc": 0.765, "ctcvr_auc": 0.77, "ctr_gauc": 0.65, "ctcvr_gauc": 0.67}
SETTINGS = {
    "foodlog": PromotionSettings(),
    "kuairand": PromotionSettings(ceilings=_KUAIRAND),
}


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
    settings: PromotionSettings

    def metric(self, who: str, name: str) -> float:
        """A metric of `candidate` or `champion`; NaN when it is missing, null or no number."""
        return number((self.evaluation.get(who) or {}).get(name))


def settings_of(dataset: str) -> PromotionSettings:
    """The thresholds of a dataset.

    Raises:
        ValueError: It has none.
    """
    if dataset not in SETTINGS:
        raise ValueError(
            f"dataset {dataset!r} has no promotion settings: declare them in model/judging/decision.py"
        )
    return SETTINGS[dataset]


def number(value: object) -> float:
    """A metric as JSON has it; NaN when it is missing, null or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)
