"""The datasets that the commands know: what each declares is all that the rest of the system knows of it.

A further dataset is one declaration here and one module in `spark_jobs/sources` that reads its raw logs.
"""

from __future__ import annotations

from spark_jobs.contract import Dataset, FeatureSpec, Kind, Measure, Owner, Statistic


def _id(
    name: str, owner: Owner, cardinality: int, width: int, description: str, table: str = ""
) -> FeatureSpec:
    return FeatureSpec(
        name=name,
        owner=owner,
        kind=Kind.ID,
        cardinality=cardinality,
        width=width,
        table=table,
        description=description,
    )


def _category(name: str, owner: Owner, cardinality: int, description: str, width: int = 8) -> FeatureSpec:
    return FeatureSpec(
        name=name,
        owner=owner,
        kind=Kind.CATEGORY,
        cardinality=cardinality,
        width=width,
        description=description,
    )


def _number(name: str, owner: Owner, low: float, high: float, description: str) -> FeatureSpec:
    return FeatureSpec(name=name, owner=owner, kind=Kind.NUMBER, low=low, high=high, description=description)


def _statistics(
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


_IMPRESSIONS, _CLICKS, _CONVERSIONS = Measure.IMPRESSIONS, Measure.CLICKS, Measure.CONVERSIONS
_CTR, _CTCVR = Measure.CTR, Measure.CTCVR

FOODLOG = Dataset(
    name="foodlog",
    actions=("click", "order"),
    conversion="an order of the dish within two hours of the impression",
    features=(
        _id("user_id", Owner.PROFILE, 100_000, 32, "the user"),
        _category("city", Owner.PROFILE, 16, "home city; 0 unknown"),
        _category("age_band", Owner.PROFILE, 8, "age band; 0 unknown"),
        _category("budget_band", Owner.PROFILE, 8, "spending band; 0 unknown"),
        _category("member", Owner.PROFILE, 3, "membership: 0 unknown, 1 no, 2 yes"),
        _id("home_cell", Owner.PROFILE, 10_000, 16, "map cell of the home address", table="cell"),
        _number("registered_days", Owner.PROFILE, 0, 10_000, "days since registration"),
        *_statistics(Owner.PROFILE, ("user_id",), (7, 30), _IMPRESSIONS, _CLICKS, _CONVERSIONS),
        *_statistics(Owner.PROFILE, ("user_id",), (30,), _CTR, _CTCVR),
        _id("item_id", Owner.ITEM, 100_000, 32, "the dish"),
        _id("merchant_id", Owner.ITEM, 20_000, 32, "the merchant that sells it"),
        _category("cuisine", Owner.ITEM, 32, "cuisine; 0 unknown", width=16),
        _category("price_band", Owner.ITEM, 8, "price band; 0 unknown"),
        _number("price", Owner.ITEM, 0, 10_000, "price in yuan"),
        _id("merchant_cell", Owner.ITEM, 10_000, 16, "map cell of the merchant", table="cell"),
        *_statistics(Owner.ITEM_STATISTIC, ("item_id",), (7, 30), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.ITEM_STATISTIC, ("merchant_id",), (1, 30), _CTR, _CTCVR),
        *_statistics(Owner.ITEM_STATISTIC, ("cuisine", "hour"), (30,), _CTR),
        *_statistics(Owner.CROSS, ("user_id", "item_id"), (7, 30), _IMPRESSIONS, _CLICKS, _CONVERSIONS),
        *_statistics(Owner.CROSS, ("user_id", "merchant_id"), (1, 7, 30), _CLICKS, _CONVERSIONS),
        *_statistics(Owner.CROSS, ("user_id", "merchant_id"), (30,), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.CROSS, ("user_id", "cuisine"), (7, 30), _CLICKS, _CTR, _CTCVR),
        *_statistics(Owner.CROSS, ("user_id", "hour"), (30,), _CLICKS, _CTR),
        _category("hour", Owner.CONTEXT, 24, "hour of the day"),
        _category("weekday", Owner.CONTEXT, 7, "day of the week, Monday 0"),
        _category("weather", Owner.CONTEXT, 8, "weather; 0 unknown"),
        _number("distance_km", Owner.CONTEXT, 0, 100, "distance from user to merchant, km"),
        _number("delivery_minutes", Owner.CONTEXT, 0, 300, "promised delivery time, minutes"),
        _category("action", Owner.ACTION, 3, "what the user did: 0 unknown, 1 click, 2 order"),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id",), (0,), _IMPRESSIONS, _CLICKS, _CONVERSIONS),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id", "item_id"), (0,), _IMPRESSIONS, _CLICKS),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id", "merchant_id"), (0,), _IMPRESSIONS, _CLICKS),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id", "cuisine"), (0,), _IMPRESSIONS, _CLICKS),
    ),
)

KUAIRAND = Dataset(
    name="kuairand",
    actions=("skip", "click", "long_view", "engage", "like"),
    conversion="a click with a long view of the video (conversion A of the log's labels)",
    utc_offset_hours=8,
    has_requests=False,
    features=(
        _id("user_id", Owner.PROFILE, 50_000, 32, "the user"),
        _category("active_degree", Owner.PROFILE, 16, "how active the user is; 0 unknown"),
        _category("video_author", Owner.PROFILE, 3, "uploads videos: 0 unknown, 1 no, 2 yes"),
        _category("follow_band", Owner.PROFILE, 16, "users followed, banded; 0 unknown"),
        _category("fans_band", Owner.PROFILE, 16, "followers, banded; 0 unknown"),
        _category("friend_band", Owner.PROFILE, 16, "friends, banded; 0 unknown"),
        _category("register_band", Owner.PROFILE, 16, "days since registration, banded; 0 unknown"),
        *(
            _id(f"onehot_feat{i}", Owner.PROFILE, 2_000, 8, f"encrypted user feature {i} of the log")
            for i in range(18)
        ),
        *_statistics(Owner.PROFILE, ("user_id",), (30,), _IMPRESSIONS, _CTR, _CTCVR),
        _id("item_id", Owner.ITEM, 20_000, 32, "the video"),
        _id("author_id", Owner.ITEM, 20_000, 16, "its author"),
        _id("music_id", Owner.ITEM, 20_000, 16, "its music"),
        _id("tag", Owner.ITEM, 256, 16, "its first tag"),
        _category("video_type", Owner.ITEM, 4, "NORMAL 1, AD 2; 0 unknown"),
        _category("upload_type", Owner.ITEM, 64, "how it was uploaded; 0 unknown"),
        _number("duration_s", Owner.ITEM, 0, 100_000, "length of the video, seconds"),
        *_statistics(Owner.ITEM_STATISTIC, ("item_id",), (1, 30), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.ITEM_STATISTIC, ("item_id", "tab"), (30,), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.ITEM_STATISTIC, ("author_id",), (30,), _CTR, _CTCVR),
        *_statistics(Owner.ITEM_STATISTIC, ("tag",), (30,), _CTR, _CTCVR),
        *_statistics(Owner.ITEM_STATISTIC, ("tab",), (30,), _CTR, _CTCVR),
        *_statistics(Owner.CROSS, ("user_id", "item_id"), (30,), _IMPRESSIONS, _CLICKS),
        *_statistics(Owner.CROSS, ("user_id", "author_id"), (30,), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.CROSS, ("user_id", "tag"), (30,), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.CROSS, ("user_id", "tab"), (1, 30), _IMPRESSIONS, _CTR, _CTCVR),
        _category("hour", Owner.CONTEXT, 24, "hour of the day"),
        _category("weekday", Owner.CONTEXT, 7, "day of the week, Monday 0"),
        _category("tab", Owner.CONTEXT, 32, "the tab of the app that showed it"),
        _category("action", Owner.ACTION, 6, "outcome of the view: 0 unknown, then as in Dataset.actions"),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id",), (0,), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id", "author_id"), (0,), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id", "tag"), (0,), _IMPRESSIONS, _CTR, _CTCVR),
        *_statistics(Owner.REALTIME_STATISTIC, ("user_id", "tab"), (0,), _IMPRESSIONS, _CTR, _CTCVR),
    ),
)

_DATASETS = {dataset.name: dataset for dataset in (FOODLOG, KUAIRAND)}


def dataset_named(name: str) -> Dataset:
    """The dataset called `name`.

    Raises:
        ValueError: There is none.
    """
    if name not in _DATASETS:
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(sorted(_DATASETS))}")
    return _DATASETS[name]
