"""The numbers of the rules for each dataset: what a day of it normally looks like, with room around it.

A dataset without an entry here has no gates, and the command refuses it: limits are a decision of the people
who know the log. `docs/gates.md` lists the rules with these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a dataset's rules. Shares are in [0, 1]; pairs are (least, greatest).

    Args:
        hours: Least number of hours of the day that have impressions.
        idle_hours: Greatest time between the last impression and the end of the day.
        quarantined_share: Greatest share of a delivery's records that ingest had to quarantine.
        volume_ratio: Impressions, rows and users against the median of the trailing days.
        known_users: Least share of impressions whose user is in the users table.
        known_items: Least share of impressions whose item is in the items table.
        labelled_impressions: Least share of clicks and conversions on time whose impression is in events.
        immature_share: Greatest share of impressions whose attribution window had not closed at the
            delivery's last event; None where outcomes come with the impression, so that no window is waited
            for.
        built_share: Least share of the day's impressions that the samples hold, users taken for bots apart.
        ctr: Clicks per candidate.
        ctcvr: Conversions per candidate.
        label_ratio: Both rates against the median of the trailing days.
        null_increase: Greatest rise of a column's share of null or unknown values over the trailing days.
        quantile_shift: Greatest shift of a number's quantiles, in spreads of the trailing days.
        users_counted: Least number of users that a GAUC of the evaluation counts.
        copc: Labels over the sum of the scores.
        score_shift: Greatest shift of the candidate's scores, in spreads of the trailing days' scores.
        auc: Greatest believable AUC and GAUC of (ctr, ctcvr): beyond, it is a leak.
        auc_gain: Greatest believable gain of AUC or GAUC over the champion.
        over_oracle: Greatest believable AUC beyond the oracle's; None without an oracle.
    """

    hours: int = 20
    idle_hours: float = 3.0
    quarantined_share: float = 0.02
    volume_ratio: tuple[float, float] = (0.5, 2.0)
    known_users: float = 0.98
    known_items: float = 0.98
    labelled_impressions: float = 0.95
    immature_share: float | None = 0.15
    built_share: float = 0.98
    ctr: tuple[float, float] = (0.005, 0.5)
    ctcvr: tuple[float, float] = (0.0005, 0.3)
    label_ratio: tuple[float, float] = (0.5, 2.0)
    null_increase: float = 0.1
    quantile_shift: float = 0.25
    users_counted: int = 20
    copc: tuple[float, float] = (0.5, 2.0)
    score_shift: float = 0.5
    auc: tuple[float, float] = (0.95, 0.97)
    auc_gain: float = 0.1
    over_oracle: float | None = None


_LIMITS = {
    "foodlog": Limits(over_oracle=0.02),
    "kuairand": Limits(
        immature_share=None,
        ctr=(0.1, 0.9),
        ctcvr=(0.05, 0.8),
        null_increase=0.2,
        auc=(0.77, 0.77),
    ),
}


def limits_of(dataset: str) -> Limits:
    """The limits of a dataset.

    Raises:
        ValueError: It has none.
    """
    if dataset not in _LIMITS:
        raise ValueError(f"dataset {dataset!r} has no limits: declare them in expectations/limits.py")
    return _LIMITS[dataset]
