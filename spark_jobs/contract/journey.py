"""`journey`: a year of real purchases at a grocery retailer (84.51, The Complete Journey, 2017).

A request is a trip to a store, its candidates are products that the store promoted in that week.
"""

from __future__ import annotations

from spark_jobs.contract.declare import action_counts, category, days_since, id_feature, number, statistics
from spark_jobs.contract.features import Dataset, Measure, Owner
from spark_jobs.contract.limits import Limits

IMPRESSIONS, CTR, CTCVR = Measure.IMPRESSIONS, Measure.CTR, Measure.CTCVR
WINDOWS = (7, 30, 90, 365)

JOURNEY = Dataset(
    name="journey",
    actions=("buy",),
    conversion="the promoted product was bought on the trip; a click: something of its product type was",
    utc_offset_hours=-5,
    history_days=365,
    features=(
        id_feature("user_id", Owner.PROFILE, "the household"),
        category("age_band", Owner.PROFILE, 7, "age of its head, banded; 0 unknown"),
        category("income_band", Owner.PROFILE, 13, "income, banded; 0 unknown"),
        category("home_owner", Owner.PROFILE, 5, "owner, probable owner, probable renter, renter; 0 unknown"),
        category("marital_status", Owner.PROFILE, 3, "married 1, unmarried 2; 0 unknown"),
        category("household_size", Owner.PROFILE, 6, "persons, 5 and more as one; 0 unknown"),
        category("household_kind", Owner.PROFILE, 5, "one adult or two, with kids or without; 0 unknown"),
        category("kids_band", Owner.PROFILE, 5, "1 for no kids, 4 for three and more; 0 unknown"),
        *action_counts(Owner.PROFILE, ("user_id",), WINDOWS, "buy"),
        *days_since(Owner.PROFILE, ("user_id",), (365,), "buy"),
        *statistics(Owner.PROFILE, ("user_id",), (30,), IMPRESSIONS, CTR, CTCVR),
        id_feature("item_id", Owner.ITEM, "the product"),
        id_feature("type_id", Owner.ITEM, "its product type; 0 unknown"),
        id_feature("category_id", Owner.ITEM, "its category; 0 unknown"),
        id_feature("maker_id", Owner.ITEM, "its manufacturer"),
        category("department", Owner.ITEM, 40, "its department; 0 unknown"),
        category("brand", Owner.ITEM, 3, "national 1, the retailer's own 2; 0 unknown"),
        *action_counts(Owner.ITEM_STATISTIC, ("item_id",), (7, 30, 90), "buy"),
        *days_since(Owner.ITEM_STATISTIC, ("item_id",), (90,), "buy"),
        *action_counts(Owner.ITEM_STATISTIC, ("item_id", "store_id"), (7, 30, 90), "buy"),
        *statistics(Owner.ITEM_STATISTIC, ("item_id",), (7, 30), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.ITEM_STATISTIC, ("type_id",), (30,), CTR, CTCVR),
        *(
            feature
            for key in ("item_id", "type_id", "category_id", "maker_id", "store_id")
            for feature in (
                *action_counts(Owner.CROSS, ("user_id", key), WINDOWS, "buy"),
                *days_since(Owner.CROSS, ("user_id", key), (365,), "buy"),
            )
        ),
        *statistics(Owner.CROSS, ("user_id", "item_id"), (30,), IMPRESSIONS, CTCVR),
        *statistics(Owner.CROSS, ("user_id", "type_id"), (30,), IMPRESSIONS, CTR),
        category("hour", Owner.CONTEXT, 24, "hour of the day"),
        category("weekday", Owner.CONTEXT, 7, "day of the week, Monday 0"),
        id_feature("store_id", Owner.CONTEXT, "the store"),
        number("price", Owner.CONTEXT, 0, 1000, "price of one at the shelf, before discounts, dollars"),
        number("discount", Owner.CONTEXT, 0, 1, "the retailer's discount as a share of that price"),
        category("display", Owner.CONTEXT, 11, "where the store displayed the product that week; 0 nowhere"),
        category("mailer", Owner.CONTEXT, 11, "where the week's mailer showed it; 0 nowhere"),
        category("action", Owner.ACTION, 2, "0 unknown, 1 bought"),
        *action_counts(Owner.REALTIME_STATISTIC, ("user_id",), (0,), "buy"),
        *action_counts(Owner.REALTIME_STATISTIC, ("user_id", "type_id"), (0,), "buy"),
    ),
    limits=Limits(
        immature_share=None,
        ctr=(0.03, 0.5),
        ctcvr=(0.01, 0.2),
    ),
)
