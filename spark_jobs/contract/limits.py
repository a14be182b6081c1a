"""All thresholds of a dataset: those of the gates and those of promotion, in one value with defaults.

The defaults hold for a small shop as well as for an app that never sleeps; a dataset that knows better says
so where it is declared (`Dataset.limits`). `docs/gates.md` says which numbers to start with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PRIMARY_METRICS = tuple(f"{task}_{kind}" for task in ("ctr", "ctcvr") for kind in ("auc", "gauc"))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a dataset's rules. Shares are in [0, 1]; pairs are (least, greatest).

    Of events and samples, see `expectations/rules`:

    Args:
        hours: Least number of hours of the day that have impressions.
        idle_hours: Greatest time between the last impressions and the end of the day.
        quarantined_share: Greatest share of a delivery's records that ingest had to quarantine.
        volume_ratio: Impressions, rows and users against the median of the trailing days.
        known_users: Least share of impressions whose user is in the users table.
        known_items: Least share of impressions whose item is in the items table.
        labelled_impressions: Least share of clicks and conversions on time whose impression is in events.
        immature_share: Greatest share of impressions whose attribution window had not closed when the
            delivery ended; None where outcomes come with the impression, so that no window is waited for.
        built_share: Least share of the day's impressions that the samples hold, users taken for bots apart.
        left_out_share: Greatest share of the day's impressions that no sample holds, for whatever reason.
        outrun_share: Greatest share of candidates that were shown after a behaviour of the user that their
            request did not know: more, and its id names a session, or a day.
        ctr: Clicks per candidate.
        ctcvr: Conversions per candidate.
        label_ratio: Both rates against the median of the trailing days.
        null_increase: Greatest rise of a column's share of null or unknown values over the trailing days.
        quantile_shift: Greatest shift of a number's quantiles, in spreads of the trailing days.
        standard_errors: By how many standard errors, of the day and of the trailing days, every bound against
            the trailing days is widened: what so many users show by chance is no drift.
        constant: Features that may have one value all day, and features that may equal another one.

    Of an evaluation; a gate and promotion read the same:

        min_users: Least number of users that a GAUC of each task counts.
        copc: Labels over the sum of the scores, of each task.
        score_shift: Greatest shift of the candidate's scores, in spreads of the trailing days' scores.
        min_auc: Least AUC of each task: a model that ranks at random is broken.
        ceilings: Greatest believable value by metric: beyond, it is a leak.
        max_auc_gain: Greatest believable gain of AUC or GAUC over the champion: beyond, it is a leak.
        settled_days: A champion that has seen fewer days is young: what a second day teaches is no sign of a
            leak, and `max_auc_gain` does not bound it.
        max_over_oracle: How much the AUC may exceed that of the true probabilities, where these are known.

    Of promotion, see `model/judging/rules.py`:

        primary: Metric that decides.
        secondary: Metric that must not fall much either.
        max_loss: How much lower than the champion's the primary metric of the same preset may be. Seeds
            differ by .002 to .006 GAUC, so that a smaller number would keep old models by chance.
        max_loss_secondary: The same for the secondary metric.
        max_loss_auc: How much lower the AUC of live scores may be, of each task.
        max_loss_request: How much lower the GAUC by request may be, of each task; it counts fewer pairs.
        max_log_loss_rise: How much higher the log loss may be, as a share of the other's.
        max_calibration_loss: How much higher the calibration error may be, as a share of the label's rate.
        broken_log_loss_rise: A rise of the log loss that is an alarm, as a share of the other's.
        max_segment_loss: How much lower a segment's primary and secondary metric may be.
        min_segment_users: Segments whose GAUC counts fewer users are not judged.

    Raises:
        ValueError: A share is outside of [0, 1], a pair is not in order, or a ceiling's metric is unknown.
    """

    hours: int = 8
    idle_hours: float = 12.0
    quarantined_share: float = 0.02
    volume_ratio: tuple[float, float] = (0.5, 2.0)
    known_users: float = 0.98
    known_items: float = 0.98
    labelled_impressions: float = 0.95
    immature_share: float | None = 0.15
    built_share: float = 0.98
    left_out_share: float = 0.25
    outrun_share: float = 0.2
    ctr: tuple[float, float] = (0.005, 0.5)
    ctcvr: tuple[float, float] = (0.0005, 0.3)
    label_ratio: tuple[float, float] = (0.5, 2.0)
    null_increase: float = 0.1
    quantile_shift: float = 0.25
    standard_errors: float = 3.0
    constant: tuple[str, ...] = ()

    min_users: int = 20
    copc: tuple[float, float] = (0.6, 1.7)
    score_shift: float = 0.5
    min_auc: float = 0.5
    ceilings: Mapping[str, float] = field(
        default_factory=lambda: {"ctr_auc": 0.95, "ctcvr_auc": 0.97, "ctr_gauc": 0.9, "ctcvr_gauc": 0.95}
    )
    max_auc_gain: float = 0.1
    settled_days: int = 7
    max_over_oracle: float = 0.02

    primary: str = "ctcvr_gauc"
    secondary: str = "ctr_gauc"
    max_loss: float = 0.01
    max_loss_secondary: float = 0.01
    max_loss_auc: float = 0.01
    max_loss_request: float = 0.02
    max_log_loss_rise: float = 0.05
    max_calibration_loss: float = 0.2
    broken_log_loss_rise: float = 0.5
    max_segment_loss: float = 0.05
    min_segment_users: int = 100

    def __post_init__(self) -> None:
        shares = [
            "quarantined_share",
            "known_users",
            "known_items",
            "labelled_impressions",
            "built_share",
            "left_out_share",
            "outrun_share",
            "null_increase",
            "min_auc",
        ]
        if self.immature_share is not None:
            shares.append("immature_share")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Limits.{name} is {getattr(self, name)}; a share lies in [0, 1]")
        for name in ("volume_ratio", "ctr", "ctcvr", "label_ratio", "copc"):
            low, high = getattr(self, name)
            if not 0 <= low < high < math.inf:
                raise ValueError(f"Limits.{name} is {(low, high)}; give (least, greatest), least first")
        for name in ("idle_hours", "quantile_shift", "score_shift", "standard_errors", "max_auc_gain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Limits.{name} is {getattr(self, name)}; give a number of at least 0")
        if not 0 <= self.hours <= 24:
            raise ValueError(f"Limits.hours is {self.hours}; a day has 24")
        if set(self.ceilings) != set(PRIMARY_METRICS):
            raise ValueError(
                f"Limits.ceilings is of {', '.join(self.ceilings) or 'nothing'}; give one each of "
                f"{', '.join(PRIMARY_METRICS)}"
            )
