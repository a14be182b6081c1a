"""`kuairand`: the real log KuaiRand (Kuaishou, 2022)."""

from __future__ import annotations

from spark_jobs.contract.declare import category, id_feature, number, statistics
from spark_jobs.contract.features import Dataset, Measure, Owner
from spark_jobs.contract.limits import Limits

IMPRESSIONS, CLICKS, CONVERSIONS = Measure.IMPRESSIONS, Measure.CLICKS, Measure.CONVERSIONS
CTR, CTCVR = Measure.CTR, Measure.CTCVR

KUAIRAND = Dataset(
    name="kuairand",
    actions=("skip", "click", "long_view", "engage", "like"),
    conversion="a click with a long view of the video (conversion A of the log's labels)",
    utc_offset_hours=8,
    has_requests=False,
    features=(
        id_feature("user_id", Owner.PROFILE, "the user"),
        category("active_degree", Owner.PROFILE, 16, "how active the user is; 0 unknown"),
        category("video_author", Owner.PROFILE, 3, "uploads videos: 0 unknown, 1 no, 2 yes"),
        category("follow_band", Owner.PROFILE, 16, "users followed, banded; 0 unknown"),
        category("fans_band", Owner.PROFILE, 16, "followers, banded; 0 unknown"),
        category("friend_band", Owner.PROFILE, 16, "friends, banded; 0 unknown"),
        category("register_band", Owner.PROFILE, 16, "days since registration, banded; 0 unknown"),
        *(
            id_feature(f"onehot_feat{i}", Owner.PROFILE, f"encrypted user feature {i} of the log")
            for i in range(18)
        ),
        *statistics(Owner.PROFILE, ("user_id",), (30,), IMPRESSIONS, CTR, CTCVR),
        id_feature("item_id", Owner.ITEM, "the video"),
        id_feature("author_id", Owner.ITEM, "its author"),
        id_feature("music_id", Owner.ITEM, "its music"),
        id_feature("tag", Owner.ITEM, "its first tag"),
        category("video_type", Owner.ITEM, 4, "NORMAL 1, AD 2; 0 unknown"),
        category("upload_type", Owner.ITEM, 64, "how it was uploaded; 0 unknown"),
        number("duration_s", Owner.ITEM, 0, 100_000, "length of the video, seconds"),
        *statistics(Owner.ITEM_STATISTIC, ("item_id",), (1, 30), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.ITEM_STATISTIC, ("item_id", "tab"), (30,), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.ITEM_STATISTIC, ("author_id",), (30,), CTR, CTCVR),
        *statistics(Owner.ITEM_STATISTIC, ("tag",), (30,), CTR, CTCVR),
        *statistics(Owner.ITEM_STATISTIC, ("tab",), (30,), CTR, CTCVR),
        *statistics(Owner.CROSS, ("user_id", "item_id"), (30,), IMPRESSIONS, CLICKS),
        *statistics(Owner.CROSS, ("user_id", "author_id"), (30,), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.CROSS, ("user_id", "tag"), (30,), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.CROSS, ("user_id", "tab"), (1, 30), IMPRESSIONS, CTR, CTCVR),
        category("hour", Owner.CONTEXT, 24, "hour of the day"),
        category("weekday", Owner.CONTEXT, 7, "day of the week, Monday 0"),
        category("tab", Owner.CONTEXT, 32, "the tab of the app that showed it"),
        category("action", Owner.ACTION, 6, "outcome of the view: 0 unknown, then as in Dataset.actions"),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id",), (0,), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id", "author_id"), (0,), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id", "tag"), (0,), IMPRESSIONS, CTR, CTCVR),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id", "tab"), (0,), IMPRESSIONS, CTR, CTCVR),
    ),
    limits=Limits(
        hours=20,
        idle_hours=3.0,
        immature_share=None,
        ctr=(0.1, 0.9),
        ctcvr=(0.05, 0.8),
        null_increase=0.2,
        ceilings={"ctr_auc": 0.765, "ctcvr_auc": 0.77, "ctr_gauc": 0.65, "ctcvr_gauc": 0.67},
    ),
)
