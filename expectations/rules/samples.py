"""The rules for samples: one day's partition, as the builder wrote it.

Rules about single rows are in `jagged_rules.py`; here are those about the day: volume, keys, label rates,
drift. Drift is measured on one candidate a row, drawn by the row's key, so that nothing is exploded.
"""

from __future__ import annotations

from expectations.rules import sql
from expectations.rules.jagged import jagged_rules
from expectations.rules.rule import Fact, Rule, Suite, Trailing, schema_facts, schema_rules
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind
from spark_jobs.contract.limits import Limits

_KEY = ("user_id", "window_start_ms")


def samples_suite(dataset: Dataset, limits: Limits) -> Suite:
    """The suite for one day of a dataset's samples."""
    return Suite(
        name="samples",
        dataset=dataset.name,
        table="samples",
        facts=(*schema_facts(), *_facts(dataset), *_joined_facts()),
        rules=(
            *schema_rules(),
            *_volume_rules(limits),
            *_label_rate_rules(limits),
            *jagged_rules(dataset),
            *_drift_rules(dataset, limits),
        ),
    )


def _facts(dataset: Dataset) -> tuple[Fact, ...]:
    """What one pass over the day measures."""
    candidates = "sum(size(candidate_time_ms))"
    facts = [
        Fact(name="rows", sql="count(*)"),
        Fact(name="users", sql="approx_count_distinct(user_id)", needs=("user_id",)),
        Fact(name="candidates", sql=candidates, needs=("candidate_time_ms",)),
        Fact(name="static_tokens", sql="sum(size(static_time_ms))", needs=("static_time_ms",)),
        Fact(name="realtime_tokens", sql="sum(size(realtime_time_ms))", needs=("realtime_time_ms",)),
    ]
    for rate, label in (("ctr", "label_click"), ("ctcvr", "label_conversion")):
        ones = f"sum(aggregate({label}, 0, (total, one) -> total + coalesce(CAST(one AS INT), 0)))"
        facts.append(Fact(name=rate, sql=sql.ratio(ones, candidates), needs=(label, "candidate_time_ms")))
    for column, feature, value in _drifting(dataset):
        if feature.kind is Kind.NUMBER:
            facts.append(Fact(name=f"{column}_quantiles", sql=sql.quantiles(value), needs=(*_KEY, column)))
        else:
            absent = f"coalesce({value}, 0) = 0"
            facts.append(Fact(name=f"{column}_unknown_share", sql=sql.share(absent), needs=(*_KEY, column)))
    return tuple(facts)


def _drifting(dataset: Dataset) -> list[tuple[str, FeatureSpec, str]]:
    """(column, feature, one value a row) of what the log brings: users' and candidates' own features.

    Statistics are left out: counts grow by themselves while a dataset is young, and what they count is
    checked in events.
    """
    found = []
    for group, one in ((Group.PROFILE, str), (Group.CANDIDATE, sql.one_of)):
        for feature in dataset.in_group(group):
            column = f"{group}_{feature.name}"
            if feature.statistic is None and feature.name not in ("hour", "weekday"):
                found.append((column, feature, one(column)))
    return found


def _joined_facts() -> tuple[Fact, ...]:
    """What needs a second look: keys over the whole day, and the day's events."""
    return tuple(
        Fact(name=name) for name in ("window_overlaps", "duplicate_candidates", "built_share", "outrun_share")
    )


def _volume_rules(limits: Limits) -> tuple[Rule, ...]:
    low, high = limits.volume_ratio
    return (
        Rule(name="rows_present", column="(rows)", description="the day has samples", fact="rows", low=1),
        *(
            Rule(
                name=f"{what}_volume",
                column="(rows)",
                description=f"about as many {what} as the trailing days had",
                fact=what,
                trailing=Trailing.RATIO,
                low=low,
                high=high,
            )
            for what in ("rows", "users", "candidates")
        ),
        Rule(
            name="impressions_built",
            column="candidate_impression_id",
            description="candidates for each impression of the day in events, users taken for bots apart:"
            " nothing is lost, nothing invented, and no later delivery is left out",
            fact="built_share",
            low=limits.built_share,
            high=1,
        ),
        Rule(
            name="candidate_unique",
            column="candidate_impression_id",
            description="no impression is a candidate twice",
            fact="duplicate_candidates",
            high=0,
        ),
        Rule(
            name="requests_at_once",
            column="candidate_request_id",
            description="share of candidates that were shown after a behaviour which their request, one"
            " moment, cannot have seen: more, and its id names a session",
            fact="outrun_share",
            high=limits.outrun_share,
        ),
        Rule(
            name="windows_disjoint",
            column="window_start_ms",
            description="no two windows of a user overlap, so that (user_id, window_start_ms) is a key",
            fact="window_overlaps",
            high=0,
        ),
    )


def _label_rate_rules(limits: Limits) -> tuple[Rule, ...]:
    rules = []
    for rate, column, (low, high) in (
        ("ctr", "label_click", limits.ctr),
        ("ctcvr", "label_conversion", limits.ctcvr),
    ):
        rules.append(
            Rule(
                name=f"{rate}_level",
                column=column,
                description=f"{rate}: mean of {column} over candidates",
                fact=rate,
                low=low,
                high=high,
            )
        )
        rules.append(
            Rule(
                name=f"{rate}_drift",
                column=column,
                description=f"{rate} against the trailing days",
                fact=rate,
                trailing=Trailing.RATIO,
                low=limits.label_ratio[0],
                high=limits.label_ratio[1],
            )
        )
    return tuple(rules)


def _drift_rules(dataset: Dataset, limits: Limits) -> tuple[Rule, ...]:
    rules = []
    for column, feature, _ in _drifting(dataset):
        if feature.kind is Kind.NUMBER:
            rules.append(
                Rule(
                    name=f"{column}_drift",
                    column=column,
                    description=f"quantiles of {column} stay where they were: a change of unit moves them",
                    fact=f"{column}_quantiles",
                    trailing=Trailing.SHIFT,
                    high=limits.quantile_shift,
                )
            )
        else:
            rules.append(
                Rule(
                    name=f"{column}_unknown_drift",
                    column=column,
                    description=f"share of unknown (0) {column}: a column lost or renamed makes it jump",
                    fact=f"{column}_unknown_share",
                    trailing=Trailing.INCREASE,
                    high=limits.null_increase,
                )
            )
    return tuple(rules)
