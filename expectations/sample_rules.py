"""The rules for samples: one day's partition, as the builder wrote it.

Every rule about rows checks our own builder, so a single broken row fails the gate. The jagged rules are
native array expressions (see `sql.py`); drift is measured on one candidate a row, drawn by the row's key, so
that nothing is exploded.
"""

from __future__ import annotations

from expectations import sql
from expectations.limits import Limits
from expectations.rules import Fact, Rule, Suite, Trailing, schema_facts, schema_rules
from spark_jobs.contract import (
    DAY_MS,
    MAX_REALTIME,
    MAX_STATIC,
    STRUCTURE_COLUMNS,
    Dataset,
    FeatureSpec,
    Group,
    Kind,
)

_LISTS = (Group.STATIC, Group.REALTIME, Group.CANDIDATE)
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
            *_key_rules(dataset),
            *_length_rules(dataset),
            *_time_rules(dataset),
            *_visible_rules(),
            *_structure_value_rules(),
            *_label_rules(),
            *_feature_rules(dataset),
            *_clock_rules(dataset),
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
    return tuple(Fact(name=name) for name in ("window_overlaps", "duplicate_candidates", "built_share"))


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


def _row(name: str, column: str, description: str, broken: str, *needs: str) -> Rule:
    return Rule(name=name, column=column, description=description, broken=broken, needs=needs, high=0)


def _key_rules(dataset: Dataset) -> tuple[Rule, ...]:
    start = sql.day_start_ms("ds", dataset)
    return (
        _row("user_id_present", "user_id", "every sample has a user", "user_id IS NULL", "user_id"),
        _row(
            "window_in_day",
            "window_start_ms",
            "a window is not empty and lies within its day",
            f"window_start_ms < {start} OR window_end_ms > {start} + {DAY_MS}"
            " OR window_start_ms >= window_end_ms",
            "window_start_ms",
            "window_end_ms",
            "ds",
        ),
    )


def _length_rules(dataset: Dataset) -> tuple[Rule, ...]:
    rules = []
    for group in _LISTS:
        columns = [name for of, name, _ in STRUCTURE_COLUMNS if of is group]
        columns += [f"{group}_{feature.name}" for feature in dataset.in_group(group)]
        rules.append(
            _row(
                f"{group}_lengths",
                f"{group}_*",
                f"all {group} lists of a row are there and have one length",
                sql.lengths_differ(columns),
                *columns,
            )
        )
    times = {group: f"{group}_time_ms" for group in _LISTS}
    for group, most in ((Group.STATIC, MAX_STATIC), (Group.REALTIME, MAX_REALTIME)):
        text = f"at most {most} {group} tokens"
        broken = f"coalesce(size({times[group]}) > {most}, false)"
        rules.append(_row(f"{group}_limit", times[group], text, broken, times[group]))
    column = times[Group.CANDIDATE]
    rules.append(
        _row(
            "candidate_present",
            column,
            "at least one candidate",
            f"coalesce(size({column}) = 0, false)",
            column,
        )
    )
    return tuple(rules)


def _time_rules(dataset: Dataset) -> tuple[Rule, ...]:
    ascending = [
        _row(
            f"{group}_ascending",
            f"{group}_time_ms",
            f"{group} times ascend: oldest first",
            sql.not_ascending(f"{group}_time_ms"),
            f"{group}_time_ms",
        )
        for group in _LISTS
    ]
    oldest = f"{sql.day_start_ms('ds', dataset)} - {dataset.history_days}L * {DAY_MS}"
    within = [
        _row(
            f"{group}_in_window",
            f"{group}_time_ms",
            f"{group} times lie in [window start, window end)",
            f"coalesce(array_min({group}_time_ms) < window_start_ms, false)"
            f" OR coalesce(array_max({group}_time_ms) >= window_end_ms, false)",
            f"{group}_time_ms",
            "window_start_ms",
            "window_end_ms",
        )
        for group in (Group.REALTIME, Group.CANDIDATE)
    ]
    return (
        *ascending,
        _row(
            "static_before_window",
            "static_time_ms",
            "no static token is from the window's start or after it",
            "coalesce(array_max(static_time_ms) >= window_start_ms, false)",
            "static_time_ms",
            "window_start_ms",
        ),
        _row(
            "static_horizon",
            "static_time_ms",
            f"no static token is from more than {dataset.history_days} days before the day",
            f"coalesce(array_min(static_time_ms) < {oldest}, false)",
            "static_time_ms",
            "ds",
        ),
        *within,
    )


def _visible_rules() -> tuple[Rule, ...]:
    return tuple(
        _row(
            f"{group}_visible_recount",
            f"{group}_visible",
            f"{group}_visible is the number of real-time tokens strictly earlier than the token",
            sql.visible_differs(f"{group}_visible", f"{group}_time_ms"),
            f"{group}_visible",
            f"{group}_time_ms",
            "realtime_time_ms",
        )
        for group in (Group.REALTIME, Group.CANDIDATE)
    )


def _structure_value_rules() -> tuple[Rule, ...]:
    """Times, counts and ids without null; labels have rules of their own."""
    return tuple(
        _row(f"{name}_present", name, f"no null in {name}", sql.list_has_null(name), name)
        for _, name, _ in STRUCTURE_COLUMNS
        if not name.startswith("label_")
    )


def _label_rules() -> tuple[Rule, ...]:
    labels = ("label_click", "label_conversion")
    more = "zip_with(label_click, label_conversion, (click, conversion) -> conversion > click)"
    return (
        *(
            _row(
                f"{label}_values",
                label,
                f"{label} is 0 or 1",
                f"coalesce(array_min({label}) < 0, false) OR coalesce(array_max({label}) > 1, false)"
                f" OR {sql.list_has_null(label)}",
                label,
            )
            for label in labels
        ),
        _row(
            "conversion_implies_click",
            "label_conversion",
            "a candidate with a conversion has a click",
            f"coalesce(exists({more}, x -> x), false)",
            *labels,
        ),
    )


def _feature_rules(dataset: Dataset) -> tuple[Rule, ...]:
    rules = []
    for group in Group:
        for feature in dataset.in_group(group):
            column = f"{group}_{feature.name}"
            text = {
                Kind.ID: "not null",
                Kind.CATEGORY: f"not null, in [0, {feature.cardinality})",
                Kind.NUMBER: f"not null, finite, in [{feature.low:g}, {feature.high:g}]",
            }[feature.kind]
            broken = (
                f"{column} IS NULL OR {sql.scalar_out_of_bounds(column, feature)}"
                if group is Group.PROFILE
                else sql.list_out_of_bounds(column, feature)
            )
            rules.append(_row(f"{column}_values", column, f"{feature.description}: {text}", broken, column))
    return tuple(rules)


def _clock_rules(dataset: Dataset) -> tuple[Rule, ...]:
    """Hour and weekday belong to the dataset's clock, not to a machine's or a session's."""
    declared = {feature.name for feature in dataset.in_group(Group.CANDIDATE)}
    clocks = {"hour": sql.hour_of("t", dataset), "weekday": sql.weekday_of("t", dataset)}
    return tuple(
        _row(
            f"candidate_{name}_clock",
            f"candidate_{name}",
            f"candidate_{name} is the {name} of the candidate's time in the dataset's clock",
            sql.clock_differs(f"candidate_{name}", expected),
            f"candidate_{name}",
            "candidate_time_ms",
        )
        for name, expected in clocks.items()
        if name in declared
    )


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
