"""Short forms in which a dataset declares its features."""

from __future__ import annotations

from spark_jobs.contract.features import FeatureSpec, Kind, Measure, Owner, Statistic


def id_feature(name: str, owner: Owner, description: str, table: str = "") -> FeatureSpec:
    """An id: any 64-bit integer but -1 and 2^63 - 1."""
    return FeatureSpec(
        name=name,
        owner=owner,
        kind=Kind.ID,
        table=table,
        description=description,
    )


def category(name: str, owner: Owner, cardinality: int, description: str) -> FeatureSpec:
    """A category: an integer in [0, cardinality)."""
    return FeatureSpec(
        name=name,
        owner=owner,
        kind=Kind.CATEGORY,
        cardinality=cardinality,
        description=description,
    )


def number(name: str, owner: Owner, low: float, high: float, description: str) -> FeatureSpec:
    """A number in [low, high]."""
    return FeatureSpec(name=name, owner=owner, kind=Kind.NUMBER, low=low, high=high, description=description)


def statistics(
    owner: Owner, keys: tuple[str, ...], days: tuple[int, ...], *measures: Measure
) -> tuple[FeatureSpec, ...]:
    """One feature a measure and window, named after its keys: `user_merchant_clicks_7d`, `item_ctr_today`."""
    return tuple(
        _statistic(owner, str(measure), Statistic(keys=keys, measure=measure, days=window))
        for window in days
        for measure in measures
    )


def action_counts(
    owner: Owner, keys: tuple[str, ...], days: tuple[int, ...], *actions: str
) -> tuple[FeatureSpec, ...]:
    """Behaviours with an action, shown before or not, one feature each: `user_item_buy_30d`."""
    return tuple(
        _statistic(owner, action, Statistic(keys=keys, measure=Measure.ACTIONS, days=window, action=action))
        for window in days
        for action in actions
    )


def days_since(
    owner: Owner, keys: tuple[str, ...], days: tuple[int, ...], *actions: str
) -> tuple[FeatureSpec, ...]:
    """Days since the last behaviour with an action: `user_item_days_since_buy_365d`.

    Yesterday is 1; where the window has none, the value is the window's length and one more.
    """
    return tuple(
        _statistic(
            owner,
            f"days_since_{action}",
            Statistic(keys=keys, measure=Measure.DAYS_SINCE, days=window, action=action),
        )
        for window in days
        for action in actions
    )


def _statistic(owner: Owner, what: str, statistic: Statistic) -> FeatureSpec:
    keys, days = statistic.keys, statistic.days
    stem = "_".join(key.removesuffix("_id") for key in keys)
    bounds = {Measure.CTR: 1.0, Measure.CTCVR: 1.0, Measure.DAYS_SINCE: statistic.greatest}
    when = f"over the {days} days before the day" if days else "so far today"
    return FeatureSpec(
        name=f"{stem}_{what}_{f'{days}d' if days else 'today'}",
        owner=owner,
        kind=Kind.NUMBER,
        high=bounds.get(statistic.measure, 1e9),
        statistic=statistic,
        description=f"{what.replace('_', ' ')} by {' and '.join(keys)}, {when}",
    )
