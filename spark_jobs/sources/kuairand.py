"""KuaiRand-Pure: the real log of a short-video app, read from its official files.

`root` is the folder with `log_standard_*.csv`, `user_features_*.csv` and `video_features_basic_*.csv`, or the
unpacked download around it. The log has no deliveries of its own: the delivery of a day is what `time_ms`
places in that day of China's clock (the log's own `date` lags: a view just before
midnight may carry the next day's).

A line of the log becomes an impression; a click when `is_click`; a conversion when the click came with a
`long_view` (conversion A of the log's description; `is_engaged` is conversion B); and always a FEEDBACK event
with the strongest thing that the user did. All outcomes are placed at the time when they are known: the end
of the view.

The optional `user_history_before_YYYYMMDD.parquet` (video ids in order, without times) is the history from
before the log, and seeds the static sequence: one event a second up to noon of the day before its date; only
the order means something. With it come the few lines of the log whose time lies before that date. A log that
reaches back before the date makes the file superfluous, and it is then not read.
"""

from __future__ import annotations

import re

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.clock import HISTORY_DS, shift_day
from spark_jobs.contract.features import EventType, Owner
from spark_jobs.contract.kuairand import KUAIRAND
from spark_jobs.contract.tables import dimension_columns, event_columns
from spark_jobs.sources import Delivery, code_of, day_of, typed
from spark_jobs.sources.files import not_empty, present, read_csv
from spark_jobs.sources.kuairand_names import (
    ACTIVE_DEGREE,
    FANS_BAND,
    FOLLOW_BAND,
    FRIEND_BAND,
    REGISTER_BAND,
    UPLOAD_TYPE,
    VIDEO_TYPE,
)

FLAGS = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "is_profile_enter",
)

LOG_TYPES = {
    "user_id": "bigint",
    "video_id": "bigint",
    "date": "int",
    "hourmin": "int",
    "time_ms": "bigint",
    **dict.fromkeys(FLAGS[:-1], "int"),
    "play_time_ms": "bigint",
    "duration_ms": "bigint",
    "profile_stay_time": "bigint",
    "comment_stay_time": "bigint",
    "is_profile_enter": "int",
    "is_rand": "int",
    "tab": "int",
}
_LOG_FILES = "log_standard_*.csv"
_BANDS = {
    "follow_band": ("follow_user_num", FOLLOW_BAND),
    "fans_band": ("fans_user_num", FANS_BAND),
    "friend_band": ("friend_user_num", FRIEND_BAND),
    "register_band": ("register_days", REGISTER_BAND),
}
_MIN_VIEW_MS = 1_000  # an outcome is never known at once: a later token must not see it a moment too early
_MAX_VIEW_MS = 30 * 60 * 1000  # play time counts loops; the longest in the log is 15 minutes


def read_delivery(spark: SparkSession, root: str, ds: str) -> Delivery:
    """Reads the day `ds` of the log below `root`.

    Raises:
        FileNotFoundError: A file is missing, or the log has no line of that day; names the day and the path.
    """
    log_df = _read_log(spark, root, f"of {ds}")
    first_ds, lines, lines_of_day = log_df.agg(
        F.min("log_ds"), F.count("*"), F.sum((F.col("day") == ds).cast("int"))
    ).first() or (None, 0, 0)
    if not lines:
        raise FileNotFoundError(_absent(root, _LOG_FILES, f"of {ds}"))
    if not lines_of_day:
        raise FileNotFoundError(
            f"kuairand: no delivery of {ds}: no line of that day in {_LOG_FILES} below {root}; "
            f"the log starts on {first_ds}"
        )
    day_df = log_df.where(F.coalesce("day", F.lit(first_ds)) == ds)
    is_broken = F.col("is_broken") | F.col("day").isNull()
    broken_df = day_df.where(is_broken).select(
        F.lit("log_standard").alias("log"),
        F.lit("not a line of the log's 19 typed columns").alias("reason"),
        "record",
        "file",
    )
    users_df, items_df = _users(spark, root, ds), _items(spark, root, ds)
    return Delivery(_events(day_df.where(~is_broken), ds), users_df, items_df, broken_df)


def read_history(spark: SparkSession, root: str) -> Delivery | None:
    """Reads the newest `user_history_before_*.parquet` that the log does not reach back over, if any.

    Raises:
        FileNotFoundError: There is no log below `root`.
    """
    log_df = _read_log(spark, root, "before the log")
    first_ds = (log_df.agg(F.min("log_ds")).first() or (None,))[0]
    names_df = _history(spark, root, "user_history_before_*.parquet").select("file").distinct()
    until = {_until(row["file"]): row["file"] for row in names_df.collect()}
    usable = [ds for ds in until if first_ds is None or ds <= first_ds]
    if not usable:
        return None
    before_df = log_df.where(~F.col("is_broken") & (F.col("day") < max(usable)))
    events_df = _events(before_df, HISTORY_DS).unionByName(
        _history_events(spark, until[max(usable)], root, shift_day(max(usable), -1))
    )
    nothing_df = before_df.limit(0).select(
        F.lit("").alias("log"), F.lit("").alias("reason"), "record", "file"
    )
    return Delivery(events_df, None, None, nothing_df)


def _until(name: str) -> str:
    digits = re.sub(r"\D", "", name)
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}"


def is_long_click() -> Column:
    """Conversion A: the click and the long view of the same impression."""
    return (F.col("is_click") == 1) & (F.col("long_view") == 1)


def is_engaged() -> Column:
    """Conversion B, sparse: a click with a like, follow, comment, forward or visit of the author."""
    deeds = [
        F.col(flag) == 1 for flag in ("is_like", "is_follow", "is_comment", "is_forward", "is_profile_enter")
    ]
    return (F.col("is_click") == 1) & (deeds[0] | deeds[1] | deeds[2] | deeds[3] | deeds[4])


def _read_log(spark: SparkSession, root: str, what: str) -> DataFrame:
    """The log's lines with `day` (of `time_ms`, China's clock), `log_ds` (its own date) and `file`."""
    reader = spark.read.option("recursiveFileLookup", True).option("pathGlobFilter", _LOG_FILES)
    log_df = read_csv(reader, root, LOG_TYPES, _absent(root, _LOG_FILES, what))
    return log_df.select(
        "*",
        day_of(F.col("time_ms"), KUAIRAND.utc_offset_hours).alias("day"),
        F.regexp_replace(F.col("date").cast("string"), r"^(\d{4})(\d{2})(\d{2})$", "$1-$2-$3").alias(
            "log_ds"
        ),
    )


def _action() -> Column:
    """The strongest thing that the user did, as `Dataset.actions` names it."""
    deeds = {
        "like": F.col("is_like") == 1,
        "engage": (F.col("is_follow") == 1)
        | (F.col("is_comment") == 1)
        | (F.col("is_forward") == 1)
        | (F.col("is_profile_enter") == 1),
        "long_view": F.col("long_view") == 1,
        "click": F.col("is_click") == 1,
    }
    code = F.lit(_code("skip"))
    for name, deed in reversed(deeds.items()):
        code = F.when(deed, F.lit(_code(name))).otherwise(code)
    return code


def _code(action: str) -> int:
    return 1 + KUAIRAND.actions.index(action)


def _events(day_df: DataFrame, ds: str) -> DataFrame:
    """Impressions, clicks, conversions and feedback of the day's lines."""
    impression_id = F.concat_ws("-", "user_id", "video_id", "time_ms")
    view_ms = F.coalesce(F.col("play_time_ms"), F.lit(0))
    seen_ms = F.greatest(F.lit(_MIN_VIEW_MS), F.least(F.lit(_MAX_VIEW_MS), view_ms))
    known_ms = F.try_add("time_ms", seen_ms)
    always = F.lit(True)
    kinds = (
        (EventType.IMPRESSION, always, F.col("time_ms"), F.lit(None)),
        (EventType.CLICK, F.col("is_click") == 1, known_ms, F.lit(None)),
        (EventType.CONVERSION, is_long_click(), known_ms, F.lit(None)),
        (EventType.FEEDBACK, always, known_ms, _action()),
    )
    event = F.explode(
        F.filter(
            F.array(
                *(
                    F.struct(
                        F.lit(str(kind)).alias("event_type"),
                        happened.alias("happened"),
                        time_ms.cast("bigint").alias("event_ms"),
                        action.cast("int").alias("action"),
                    )
                    for kind, happened, time_ms, action in kinds
                )
            ),
            lambda one: one["happened"],
        )
    )
    return (
        day_df.select(
            *FLAGS,
            "user_id",
            "video_id",
            "tab",
            "file",
            impression_id.alias("impression_id"),
            event.alias("e"),
        )
        .select(
            F.concat_ws("-", "impression_id", "e.event_type").alias("event_id"),
            "e.event_type",
            "user_id",
            F.col("video_id").alias("item_id"),
            F.col("impression_id").alias("request_id"),
            "impression_id",
            F.col("e.event_ms").alias("time_ms"),
            "e.action",
            day_of(F.col("e.event_ms"), KUAIRAND.utc_offset_hours).alias("ds"),
            F.lit(ds).alias("delivery_ds"),
            "tab",
            F.col("e.event_ms").alias("arrival_ms"),
            F.lit("log_standard").alias("log"),
            "file",
        )
        .transform(typed, event_columns(KUAIRAND), "arrival_ms", "log", "file")
    )


def _history(spark: SparkSession, root: str, name: str) -> DataFrame:
    schema = "user_id bigint, watch_seq array<bigint>, like_seq array<bigint>, long_watch_seq array<bigint>"
    return (
        spark.read.schema(schema)
        .option("pathGlobFilter", name)
        .option("recursiveFileLookup", True)
        .parquet(root)
        .withColumn("file", F.col("_metadata.file_name"))
    )


def _history_events(spark: SparkSession, name: str, root: str, ds: str) -> DataFrame:
    """FEEDBACK events from the prior history: one a video shown, or known only from the likes and long views.

    The lists are cut to 50 each, so that a liked or long watched video may be older than all that were shown:
    it comes before them, likes first. A video listed twice is matched from the end, the latest with the
    latest.
    """
    history_df = _history(spark, root, name)
    latest = Window.partitionBy("user_id", "item_id").orderBy(F.col("place").desc())

    def listed(column: str) -> DataFrame:
        return history_df.select("user_id", F.posexplode(column).alias("place", "item_id")).select(
            "user_id", "item_id", F.row_number().over(latest).alias("copy"), F.col("place").alias(column)
        )

    keys = ["user_id", "item_id", "copy"]
    seen_df = (
        listed("watch_seq")
        .join(listed("long_watch_seq"), keys, "full")
        .join(listed("like_seq"), keys, "full")
    )
    action = (
        F.when(F.col("like_seq").isNotNull(), F.lit(_code("like")))
        .when(F.col("long_watch_seq").isNotNull(), F.lit(_code("long_view")))
        .otherwise(F.lit(_code("skip")))
    )
    newest_first = Window.partitionBy("user_id").orderBy(
        F.col("watch_seq").desc_nulls_last(),
        F.col("long_watch_seq").desc_nulls_last(),
        F.col("like_seq").desc_nulls_last(),
        F.col("item_id").desc(),
        F.col("copy"),
    )
    noon_ms = KUAIRAND.day_start_ms(ds) + 12 * 3_600_000
    event_id = F.concat_ws("-", F.lit("history"), "user_id", "back")
    return (
        seen_df.select(
            "user_id", "item_id", action.alias("action"), F.row_number().over(newest_first).alias("back")
        )
        .select(
            event_id.alias("event_id"),
            F.lit(str(EventType.FEEDBACK)).alias("event_type"),
            "user_id",
            "item_id",
            event_id.alias("request_id"),
            event_id.alias("impression_id"),
            (F.lit(noon_ms) - F.col("back") * 1000).alias("time_ms"),
            "action",
            F.lit(ds).alias("ds"),
            F.lit(ds).alias("delivery_ds"),
            F.lit(None).alias("tab"),
            F.lit(noon_ms).cast("bigint").alias("arrival_ms"),
            F.lit("user_history").alias("log"),
            F.lit(name).alias("file"),
        )
        .transform(typed, event_columns(KUAIRAND), "arrival_ms", "log", "file")
    )


def _users(spark: SparkSession, root: str, ds: str) -> DataFrame:
    users_df = _catalogue(spark, root, "user_features_*.csv", ds)
    uploads = F.when(F.col("is_video_author") == "1", 2).when(F.col("is_video_author") == "0", 1).otherwise(0)
    onehot = [F.coalesce(F.expr(f"try_cast(onehot_feat{i} as double)") + 1, F.lit(0)) for i in range(18)]
    return users_df.select(
        "user_id",
        code_of(F.col("user_active_degree"), ACTIVE_DEGREE).alias("active_degree"),
        uploads.alias("video_author"),
        *(code_of(F.col(f"{column}_range"), table).alias(name) for name, (column, table) in _BANDS.items()),
        *(value.alias(f"onehot_feat{i}") for i, value in enumerate(onehot)),
        F.lit(ds).alias("ds"),
    ).transform(typed, dimension_columns(KUAIRAND, Owner.PROFILE))


def _items(spark: SparkSession, root: str, ds: str) -> DataFrame:
    items_df = _catalogue(spark, root, "video_features_basic_*.csv", ds)
    duration_s = F.expr("try_cast(video_duration as double)") / 1000
    first_tag = F.expr("try_cast(split_part(tag, ',', 1) as bigint)")
    return items_df.select(
        F.col("video_id").alias("item_id"),
        "author_id",
        "music_id",
        F.coalesce(F.try_add(first_tag, F.lit(1)), F.lit(0)).alias("tag"),
        code_of(F.col("video_type"), VIDEO_TYPE).alias("video_type"),
        code_of(F.col("upload_type"), UPLOAD_TYPE).alias("upload_type"),
        F.least(F.greatest(F.coalesce(duration_s, F.lit(0.0)), F.lit(0.0)), F.lit(100_000.0)).alias(
            "duration_s"
        ),
        F.lit(ds).alias("ds"),
    ).transform(typed, dimension_columns(KUAIRAND, Owner.ITEM))


def _catalogue(spark: SparkSession, root: str, pattern: str, ds: str) -> DataFrame:
    """Files of that name at any depth below `root`; all columns are strings."""
    reader = (
        spark.read.option("header", True)
        .option("recursiveFileLookup", True)
        .option("pathGlobFilter", pattern)
        .option("enforceSchema", False)  # refuses files whose columns are named or ordered differently
    )
    what = _absent(root, pattern, f"of {ds}")
    return not_empty(present(lambda: reader.csv(root), what), what)


def _absent(root: str, pattern: str, what: str) -> str:
    return (
        f"kuairand: no delivery {what}: no file {pattern} below {root}; "
        "MTGR_KUAIRAND must name the folder of the unpacked download"
    )
