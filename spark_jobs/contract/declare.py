"""Short forms in which a dataset declares its features."""

from __future__ import annotations

from spark_jobs.contract.features import FeatureSpec, Kind, Measure, Owner, Statistic


def id_feature(name: str, owner: Owner, description: str, table: str = "") -> FeatureSpec:
    """An id: any 64-bit integer."""
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
    stem = "_".join(key.removesuffix("_id") for key in keys)
    return tuple(
        FeatureSpec(
            name=f"{stem}_{measure}_{'today' if window == 0 else f'{window}d'}",
            owner=owner,
            kind=Kind.NUMBER,
            high=1.0 if measure.is_rate else 1e9,
            statistic=Statistic(keys=keys, measure=measure, days=window),
            description=f"{measure} by {' and '.join(keys)}, "
            + ("so far today" if window == 0 else f"over the {window} days before the day"),
        )
        for window in days
        for measure in measures
    )
