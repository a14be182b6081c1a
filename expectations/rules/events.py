"""The rules for events: one delivery, as ingest wrote it.

The partition is a delivery (`delivery_ds`), not a day: what arrived for the run of a day is what can be wrong
today. Ingest quarantines what the source broke, and the share of that is bounded here; a broken row that is
nevertheless in `events` is a fault of ours, so none is allowed. Checks of the raw log that other tools keep
in a suite of its own (hours covered, volume, broken lines) are rules of this suite: they need nothing but
events and quarantine.
"""

from __future__ import annotations

from expectations.rules import sql
from expectations.rules.event_rows import event_row_rules
from expectations.rules.rule import Fact, Rule, Suite, Trailing, schema_facts, schema_rules
from spark_jobs.contract.clock import CLOCK_FEATURES, DAY_MS, HOUR_MS
from spark_jobs.contract.features import Dataset, EventType, FeatureSpec, Kind, Owner
from spark_jobs.contract.limits import Limits

# An hour has impressions when it has two, and one in 500 of the day's; a delivery reaches to the last hour
# that has three events, and one in 2,000 of all: a single record with a wrong clock makes neither.
_LEAST_OF_HOUR, _OF_HOUR, _LEAST_AT_END, _OF_END = 2, 500, 3, 2_000
_IMPRESSION = f"event_type = '{EventType.IMPRESSION}' AND ds = delivery_ds"


def events_suite(dataset: Dataset, limits: Limits) -> Suite:
    """The suite for one delivery of a dataset's events."""
    context = [f for f in dataset.of(Owner.CONTEXT) if f.name not in CLOCK_FEATURES]
    return Suite(
        name="events",
        dataset=dataset.name,
        table="events",
        columns=_columns(dataset),
        facts=(*schema_facts(), *_facts(dataset, context), *_joined_facts(limits)),
        rules=(
            *schema_rules(),
            *_volume_rules(limits),
            *_reference_rules(limits),
            *event_row_rules(dataset, context),
            *_null_rules(context, limits),
            *_shift_rules(context, limits),
        ),
    )


def _columns(dataset: Dataset) -> tuple[Fact, ...]:
    """The hour after the start of the delivery's day in which a row happened: any row, and an impression."""
    start = sql.day_start_ms("delivery_ds", dataset)
    needs = ("time_ms", "delivery_ds")
    return (
        Fact(name="_hour", sql=sql.hour_after(start), needs=needs),
        Fact(
            name="_shown_hour",
            sql=sql.hour_after(start, _IMPRESSION),
            needs=(*needs, "event_type", "ds"),
        ),
    )


def _facts(dataset: Dataset, context: list[FeatureSpec]) -> tuple[Fact, ...]:
    """What one pass over the delivery measures."""
    kind, day = ("event_type",), ("event_type", "ds", "delivery_ds")
    start = sql.day_start_ms("delivery_ds", dataset)
    shown, all_ = sql.Hours("_shown_hour", 24), sql.Hours("_hour", 48)
    most = f"greatest({_LEAST_AT_END}, count(*) DIV {_OF_END})"
    enough = f"greatest({_LEAST_OF_HOUR}, count_if({_IMPRESSION}) DIV {_OF_HOUR})"
    facts = [
        Fact(name="rows", sql="count(*)"),
        Fact(name="impressions", sql=f"count_if({_IMPRESSION})", needs=day),
        *(
            Fact(name=f"{event}s", sql=f"count_if(event_type = '{event}')", needs=kind)
            for event in (EventType.CLICK, EventType.CONVERSION)
        ),
        Fact(name="late_rows", sql="count_if(ds < delivery_ds)", needs=("ds", "delivery_ds")),
        Fact(
            name="hours",
            sql=shown.filled(enough),
            needs=(*day, "_shown_hour"),
        ),
        Fact(
            name="idle_hours",
            sql=f"(max({start}) + {DAY_MS} - {shown.last(enough)}) / {HOUR_MS}D",
            needs=(*day, "_shown_hour"),
        ),
        Fact(
            name="last_time_ms",
            sql=f"coalesce({all_.last(most)}, max(time_ms))",
            needs=("time_ms", "_hour"),
        ),
    ]
    for feature in context:
        needs = (*day, feature.name)
        facts.append(
            Fact(
                name=f"{feature.name}_null_share",
                sql=sql.share(_absent(feature), _IMPRESSION),
                needs=needs,
            )
        )
        if feature.kind is Kind.NUMBER:
            value = f"CASE WHEN {_IMPRESSION} THEN {feature.name} END"
            facts.append(Fact(name=f"{feature.name}_quantiles", sql=sql.quantiles(value), needs=needs))
    return tuple(facts)


def _joined_facts(limits: Limits) -> tuple[Fact, ...]:
    """What needs a second look: joins with other tables, keys, and the delivery's last event."""
    names = ["duplicate_events", "known_users", "known_items", "labelled_impressions", "quarantined_share"]
    names += ["users", "users_error", "impressions_error", "effective_users"]
    if limits.immature_share is not None:
        names.append("immature_share")
    return tuple(Fact(name=name) for name in names)


def _volume_rules(limits: Limits) -> tuple[Rule, ...]:
    low, high = limits.volume_ratio
    return (
        Rule(
            name="rows_present",
            column="(rows)",
            description="the delivery has rows",
            fact="rows",
            low=1,
        ),
        Rule(
            name="impressions_present",
            column="event_type",
            description="the delivery has impressions of its own day",
            fact="impressions",
            low=1,
        ),
        *(
            Rule(
                name=f"{what}_volume",
                column="(rows)",
                description=f"about as many {what} of the day as the trailing days had",
                fact=what,
                trailing=Trailing.RATIO,
                low=low,
                high=high,
                limit="volume_ratio",
                errors=limits.standard_errors,
                explained_by=("hours_covered", "fresh", *before),
            )
            for what, before in (("impressions", ()), ("users", ("impressions_volume",)))
        ),
        Rule(
            name="hours_covered",
            column="time_ms",
            description="impressions in nearly every hour of the day: the delivery is whole",
            fact="hours",
            low=limits.hours,
            limit="hours",
        ),
        Rule(
            name="fresh",
            column="time_ms",
            description="the last hour with impressions lies close to the end of the day, in hours",
            fact="idle_hours",
            low=0,
            high=limits.idle_hours,
            limit="idle_hours",
            explained_by=("hours_covered",),
        ),
        Rule(
            name="quarantined",
            column="(quarantine)",
            description="share of the delivery's records that ingest had to put into quarantine",
            fact="quarantined_share",
            high=limits.quarantined_share,
            limit="quarantined_share",
        ),
    )


def _reference_rules(limits: Limits) -> tuple[Rule, ...]:
    rules = [
        Rule(
            name="event_id_unique",
            column="event_id",
            description="no event id stands twice in the delivery",
            fact="duplicate_events",
            high=0,
        ),
        Rule(
            name="user_known",
            column="user_id",
            description="share of impressions whose user is in the users table on the day",
            fact="known_users",
            low=limits.known_users,
            limit="known_users",
        ),
        Rule(
            name="item_known",
            column="item_id",
            description="share of impressions whose item is in the items table on the day",
            fact="known_items",
            low=limits.known_items,
            limit="known_items",
        ),
        Rule(
            name="label_has_impression",
            column="impression_id",
            description="share of clicks and conversions on time whose impression is in events",
            fact="labelled_impressions",
            low=limits.labelled_impressions,
            limit="labelled_impressions",
        ),
    ]
    if limits.immature_share is not None:
        rules.append(
            Rule(
                name="labels_mature",
                column="time_ms",
                description="share of impressions whose attribution window outlasts the delivery",
                fact="immature_share",
                high=limits.immature_share,
                limit="immature_share",
            )
        )
    return tuple(rules)


def _null_rules(context: list[FeatureSpec], limits: Limits) -> list[Rule]:
    return [
        Rule(
            name=f"{feature.name}_null_drift",
            column=feature.name,
            description=f"share of impressions without {feature.name}: a renamed column makes it jump",
            fact=f"{feature.name}_null_share",
            trailing=Trailing.INCREASE,
            high=limits.null_increase,
            limit="null_increase",
            errors=limits.standard_errors,
            users="effective_users",
        )
        for feature in context
    ]


def _shift_rules(context: list[FeatureSpec], limits: Limits) -> list[Rule]:
    return [
        Rule(
            name=f"{feature.name}_drift",
            column=feature.name,
            description=f"quantiles of {feature.name} stay where they were: a change of unit moves them",
            fact=f"{feature.name}_quantiles",
            trailing=Trailing.SHIFT,
            high=limits.quantile_shift,
            limit="quantile_shift",
            errors=limits.standard_errors,
            users="effective_users",
        )
        for feature in context
        if feature.kind is Kind.NUMBER
    ]


def _absent(feature: FeatureSpec) -> str:
    """A category's 0 says unknown, so that it counts as absent; a number is absent when null."""
    if feature.kind is Kind.CATEGORY:
        return f"{feature.name} IS NULL OR {feature.name} = 0"
    return f"{feature.name} IS NULL"
