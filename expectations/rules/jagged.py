"""The rules that hold for every row of samples: lengths, order, times, visibility counts, values.

They check our own builder, so a single broken row fails the gate. All are native array expressions, see
`sql.py`.
"""

from __future__ import annotations

from expectations.rules import sql
from expectations.rules.rule import Rule, row_rule
from spark_jobs.contract.clock import DAY_MS
from spark_jobs.contract.features import MAX_REALTIME, MAX_STATIC, NO_ID, Dataset, Group, Kind
from spark_jobs.contract.tables import WEIGHTS, structure_columns

_ID = "an id, and not " + NO_ID
_LISTS = (Group.STATIC, Group.REALTIME, Group.CANDIDATE)


def jagged_rules(dataset: Dataset) -> tuple[Rule, ...]:
    """All row rules for a dataset's samples."""
    return (
        *_key_rules(dataset),
        *_length_rules(dataset),
        *_time_rules(dataset),
        *_visible_rules(),
        *_structure_value_rules(dataset),
        *_weight_rules(dataset),
        *_label_rules(),
        *_feature_rules(dataset),
        *_clock_rules(dataset),
    )


def _key_rules(dataset: Dataset) -> tuple[Rule, ...]:
    start = sql.day_start_ms("ds", dataset)
    return (
        row_rule(
            "user_id_present", "user_id", f"every sample has a user: {_ID}", sql.no_id("user_id"), "user_id"
        ),
        row_rule(
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
        columns = [name for of, name, _ in structure_columns(dataset) if of is group]
        columns += [f"{group}_{feature.name}" for feature in dataset.in_group(group)]
        rules.append(
            row_rule(
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
        rules.append(row_rule(f"{group}_limit", times[group], text, broken, times[group]))
    column = times[Group.CANDIDATE]
    rules.append(
        row_rule(
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
        row_rule(
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
        row_rule(
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
        row_rule(
            "static_before_window",
            "static_time_ms",
            "no static token is from the window's start or after it",
            "coalesce(array_max(static_time_ms) >= window_start_ms, false)",
            "static_time_ms",
            "window_start_ms",
        ),
        row_rule(
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
        row_rule(
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


def _structure_value_rules(dataset: Dataset) -> tuple[Rule, ...]:
    """Times, counts and ids without null; labels have rules of their own."""
    return tuple(
        row_rule(f"{name}_present", name, f"no null in {name}", sql.list_has_null(name), name)
        for _, name, _ in structure_columns(dataset)
        if not name.startswith("label_")
    )


def _weight_rules(dataset: Dataset) -> tuple[Rule, ...]:
    if not dataset.has_weights:
        return ()
    column, (low, high) = "candidate_weight", WEIGHTS
    broken = f"array_min({column}) < {low!r}D OR array_max({column}) > {high!r}D"
    text = f"a candidate stands for {low:g} to {high:g} impressions"
    return (row_rule("candidate_weight_values", column, text, f"coalesce({broken}, false)", column),)


def _label_rules() -> tuple[Rule, ...]:
    labels = ("label_click", "label_conversion")
    more = "zip_with(label_click, label_conversion, (click, conversion) -> conversion > click)"
    return (
        *(
            row_rule(
                f"{label}_values",
                label,
                f"{label} is 0 or 1",
                f"coalesce(array_min({label}) < 0, false) OR coalesce(array_max({label}) > 1, false)"
                f" OR {sql.list_has_null(label)}",
                label,
            )
            for label in labels
        ),
        row_rule(
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
                Kind.ID: _ID,
                Kind.CATEGORY: f"not null, in [0, {feature.cardinality})",
                Kind.NUMBER: f"not null, finite, in [{feature.low:g}, {feature.high:g}]",
            }[feature.kind]
            broken = (
                f"{column} IS NULL OR {sql.scalar_out_of_bounds(column, feature)}"
                if group is Group.PROFILE
                else sql.list_out_of_bounds(column, feature)
            )
            rules.append(
                row_rule(f"{column}_values", column, f"{feature.description}: {text}", broken, column)
            )
    return tuple(rules)


def _clock_rules(dataset: Dataset) -> tuple[Rule, ...]:
    """Hour and weekday belong to the dataset's clock, not to a machine's or a session's."""
    declared = {feature.name for feature in dataset.in_group(Group.CANDIDATE)}
    clocks = {"hour": sql.hour_of("t", dataset), "weekday": sql.weekday_of("t", dataset)}
    return tuple(
        row_rule(
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
