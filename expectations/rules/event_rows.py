"""The rules that hold for every row of events.

They are what ingest promises: a row that breaks one belongs into quarantine, so none is allowed in `events`.
"""

from __future__ import annotations

from expectations.rules import sql
from expectations.rules.rule import Rule, row_rule
from spark_jobs.contract.features import NO_ID, Dataset, EventType, FeatureSpec, Kind


def event_row_rules(dataset: Dataset, context: list[FeatureSpec]) -> tuple[Rule, ...]:
    """All row rules for a dataset's events; `context` are its stored context features."""
    types = ", ".join(f"'{kind}'" for kind in EventType)
    labels = f"event_type IN ('{EventType.IMPRESSION}', '{EventType.CLICK}', '{EventType.CONVERSION}')"
    impression = f"event_type = '{EventType.IMPRESSION}'"
    days = "datediff(try_cast(ds AS DATE), try_cast(delivery_ds AS DATE))"
    return (
        *(
            row_rule(f"{column}_present", column, f"every event has {what}", f"{column} IS NULL", column)
            for column, what in (
                ("event_id", "an id"),
                ("time_ms", "a time"),
            )
        ),
        *(
            row_rule(
                f"{column}_present",
                column,
                f"every event has {what}, and not {NO_ID}",
                sql.no_id(column),
                column,
            )
            for column, what in (("user_id", "a user"), ("item_id", "an item"))
        ),
        row_rule(
            "impression_id_present",
            "impression_id",
            "every impression, click and conversion names its impression",
            f"impression_id IS NULL AND coalesce({labels}, false)",
            "impression_id",
            "event_type",
        ),
        row_rule(
            "request_id_present",
            "request_id",
            "every impression names its request",
            f"request_id IS NULL AND coalesce({impression}, false)",
            "request_id",
            "event_type",
        ),
        row_rule(
            "event_type_known",
            "event_type",
            "every event is of a known type",
            f"event_type NOT IN ({types})",
            "event_type",
        ),
        row_rule(
            "time_in_ds",
            "time_ms",
            "an event's day is the day of its time in the dataset's clock",
            f"time_ms IS NOT NULL AND NOT (ds <=> {sql.day_of('time_ms', dataset)})",
            "time_ms",
            "ds",
        ),
        row_rule(
            "ds_of_delivery",
            "ds",
            f"an event is at most {dataset.late_days} days older than its delivery, and at most one newer:"
            " times in seconds or microseconds land years away",
            f"NOT ({days} BETWEEN {-dataset.late_days} AND 1)",
            "ds",
            "delivery_ds",
        ),
        row_rule(
            "action_values",
            "action",
            f"an action is null or 0 (unknown) to {len(dataset.actions)} ({dataset.actions[-1]})",
            f"coalesce(action NOT BETWEEN 0 AND {len(dataset.actions)}, false)",
            "action",
        ),
        *(_context_rule(feature) for feature in context),
    )


def _context_rule(feature: FeatureSpec) -> Rule:
    text = {
        Kind.ID: f"null or an id, and not {NO_ID}",
        Kind.CATEGORY: f"null or in [0, {feature.cardinality})",
        Kind.NUMBER: f"null or finite in [{feature.low:g}, {feature.high:g}]",
    }[feature.kind]
    broken = f"coalesce({sql.scalar_out_of_bounds(feature.name, feature)}, false)"
    return row_rule(
        f"{feature.name}_values", feature.name, f"{feature.description}: {text}", broken, feature.name
    )
