"""`foodlog`: the log of a food-delivery app, as the simulator writes it."""

from __future__ import annotations

from spark_jobs.contract.declare import category, id_feature, number, statistics
from spark_jobs.contract.features import Dataset, Measure, Owner
from spark_jobs.contract.limits import Limits

IMPRESSIONS, CLICKS, CONVERSIONS = Measure.IMPRESSIONS, Measure.CLICKS, Measure.CONVERSIONS
CTR, CTCVR = Measure.CTR, Measure.CTCVR

FOODLOG = Dataset(
    name="foodlog",
    actions=("click", "order"),
    conversion="an order of the dish within two hours of the impression",
    features=(
        id_feature("user_id", Owner.PROFILE, "the user"),
        category("city", Owner.PROFILE, 16, "home city; 0 unknown"),
        category("age_band", Owner.PROFILE, 8, "age band; 0 unknown"),
        category("budget_band", Owner.PROFILE, 8, "spending band; 0 unknown"),
        category("member", Owner.PROFILE, 3, "membership: 0 unknown, 1 no, 2 yes"),
        id_feature("home_cell", Owner.PROFILE, "map cell of the home address", table="cell"),
        number("registered_days", Owner.PROFILE, 0, 10_000, "days since registration"),
        *statistics(Owner.PROFILE, ("user_id",), (7, 30), IMPRESSIONS, CLICKS, CONVERSIONS),
        *statistics(Owner.PROFILE, ("user_id",), (30,), CTR, CTCVR),
        id_feature("item_id", Owner.ITEM, "the dish"),
        id_feature("merchant_id", Owner.ITEM, "the merchant that sells it"),
        category("cuisine", Owner.ITEM, 32, "cuisine; 0 unknown"),
        category("price_band", Owner.ITEM, 8, "price band; 0 unknown"),
        number("price", Owner.ITEM, 0, 10_000, "price in yuan"),
        id_feature("merchant_cell", Owner.ITEM, "map cell of the merchant", table="cell"),
        *statistics(Owner.ITEM_STATISTIC, ("item_id",), (7, 30), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.ITEM_STATISTIC, ("merchant_id",), (1, 30), CTR, CTCVR),
        *statistics(Owner.ITEM_STATISTIC, ("cuisine", "hour"), (30,), CTR),
        *statistics(Owner.CROSS, ("user_id", "item_id"), (7, 30), IMPRESSIONS, CLICKS, CONVERSIONS),
        *statistics(Owner.CROSS, ("user_id", "merchant_id"), (1, 7, 30), CLICKS, CONVERSIONS),
        *statistics(Owner.CROSS, ("user_id", "merchant_id"), (30,), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.CROSS, ("user_id", "cuisine"), (7, 30), CLICKS, CTR, CTCVR),
        *statistics(Owner.CROSS, ("user_id", "hour"), (30,), CLICKS, CTR),
        category("hour", Owner.CONTEXT, 24, "hour of the day"),
        category("weekday", Owner.CONTEXT, 7, "day of the week, Monday 0"),
        category("weather", Owner.CONTEXT, 8, "weather; 0 unknown"),
        number("distance_km", Owner.CONTEXT, 0, 100, "distance from user to merchant, km"),
        number("delivery_minutes", Owner.CONTEXT, 0, 300, "promised delivery time, minutes"),
        category("action", Owner.ACTION, 3, "what the user did: 0 unknown, 1 click, 2 order"),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id",), (0,), IMPRESSIONS, CLICKS, CONVERSIONS),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id", "item_id"), (0,), IMPRESSIONS, CLICKS),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id", "merchant_id"), (0,), IMPRESSIONS, CLICKS),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id", "cuisine"), (0,), IMPRESSIONS, CLICKS),
    ),
    limits=Limits(hours=20, idle_hours=3.0, constant=("city", "weather")),
)
