"""The declaration, the module and the test that `make new-dataset` writes.

Lint passes, the test does not yet: what a person has to decide is marked `FILL IN`, and it names every line
that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scripts.scaffolding.sample import Log

# Column of `events` to its type, and what it is.
_EVENT = {
    "event_id": ("string", "one a record, the same when it is delivered again"),
    "event_type": ("string", "impression, click, conversion or feedback"),
    "user_id": ("bigint", "whom it happened to"),
    "item_id": ("bigint", "the item that was shown"),
    "request_id": ("string", "one a page or request: impressions that were shown together"),
    "impression_id": ("string", "event_id of the impression that a click or conversion is of"),
    "time_ms": ("bigint", "when it happened, milliseconds since 1970 UTC"),
    "action": ("tinyint", "of feedback and behaviours: 1 + the index in the declaration's actions"),
}
_READERS = {"csv": "read_csv", "json": "read_json_lines", "parquet": "read_parquet"}


def declaration(name: str, logs: Sequence[Log]) -> str:
    """`spark_jobs/contract/<name>.py`."""
    seen = "\n".join(
        f"# {log.name} ({log.form}): {column} {kind}" for log in logs for column, kind in log.columns.items()
    )
    return f'''"""`{name}`: FILL IN what the log is of, and whose it is."""

from __future__ import annotations

from spark_jobs.contract.declare import category, id_feature, statistics
from spark_jobs.contract.features import Dataset, Measure, Owner

CTR, CTCVR, IMPRESSIONS = Measure.CTR, Measure.CTCVR, Measure.IMPRESSIONS

# Columns of the logs. FILL IN: declare those that say something of the user, the item or the request as
# features below (docs/declaration.md), give them under the same names in the source, and delete these lines.
{seen}

{name.upper()} = Dataset(
    name="{name}",
    actions=("click", "order"),  # FILL IN: what a user does with an item, in the log's own words
    conversion="FILL IN: the outcome that counts, and within which time of the impression",
    features=(
        id_feature("user_id", Owner.PROFILE, "the user"),
        *statistics(Owner.PROFILE, ("user_id",), (30,), IMPRESSIONS, CTR, CTCVR),
        id_feature("item_id", Owner.ITEM, "the item"),
        *statistics(Owner.ITEM_STATISTIC, ("item_id",), (7,), CTR, CTCVR),
        *statistics(Owner.CROSS, ("user_id", "item_id"), (30,), IMPRESSIONS, CTR),
        category("hour", Owner.CONTEXT, 24, "hour of the day"),
        category("weekday", Owner.CONTEXT, 7, "day of the week, Monday 0"),
        category("action", Owner.ACTION, 3, "what the user did: 0 unknown, 1 click, 2 order"),
        *statistics(Owner.REALTIME_STATISTIC, ("user_id", "item_id"), (0,), IMPRESSIONS),
    ),
)
'''


def source(name: str, logs: Sequence[Log]) -> str:
    """`spark_jobs/sources/<name>.py`."""
    events = logs[0]
    readers = ", ".join(sorted({_READERS[log.form] for log in logs}))
    nodash = '    nodash = ds.replace("-", "")\n' if any("{nodash}" in log.path for log in logs) else ""
    return f'''"""{name}: FILL IN which logs there are, and when a day's delivery is complete."""

from __future__ import annotations

from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from spark_jobs.contract.{name} import {name.upper()}
from spark_jobs.contract.tables import event_columns
from spark_jobs.sources import Delivery, day_of, typed
from spark_jobs.sources.files import {readers}

{"".join(_types(log) for log in logs)}

def read_delivery(spark: SparkSession, root: str, ds: str) -> Delivery:
    """Reads the delivery of day `ds` below `root`.

    Raises:
        FileNotFoundError: A file is missing; names the day and the path.
    """
{nodash}    absent = f"{name}: no delivery of {{ds}}: a file is absent in {{root}}"
    lines = {{
{"".join(_read(log) for log in logs)}    }}
    good = {{log: lines_df.where("NOT is_broken") for log, lines_df in lines.items()}}
    broken = [
        lines_df.where("is_broken").select(
            F.lit(log).alias("log"), F.lit("a value is not of its type").alias("reason"), "record", "file"
        )
        for log, lines_df in lines.items()
    ]
    return Delivery(
        _events(good["{events.name}"], ds),
        None,  # FILL IN: users and their features, see dimension_columns; None where no log has them
        None,  # FILL IN: items and their features; None where no log has them
        reduce(DataFrame.unionByName, broken),
    )


def _events(lines_df: DataFrame, ds: str) -> DataFrame:
    return lines_df.select(
{"".join(_event_column(column, events) for column in _EVENT)}        "file",
        F.lit(ds).alias("delivery_ds"),
    ).transform(_dated)


def _dated(events_df: DataFrame) -> DataFrame:
    """Adds the day, and the time of arrival: FILL IN the log's own time of arrival if it has one."""
    day = day_of(F.col("time_ms"), {name.upper()}.utc_offset_hours)
    dated_df = events_df.withColumn("ds", day).withColumn("arrival_ms", F.col("time_ms"))
    return dated_df.transform(typed, event_columns({name.upper()}), "arrival_ms", "file")
'''


def _types(log: Log) -> str:
    columns = "".join(f'    "{column}": "{kind}",\n' for column, kind in log.columns.items())
    left = "".join(f"# not read: {column} {kind}\n" for column, kind in log.left_out.items())
    return f"{left}{log.name.upper()} = {{\n{columns}}}\n"


def _read(log: Log) -> str:
    types = log.name.upper()
    if log.form == "json":
        types = f'", ".join(f"{{name}} {{kind}}" for name, kind in {types}.items())'
    where = "" if log.day else "        # FILL IN: the same file for every day; where does a day's lie?\n"
    return (
        f'{where}        "{log.name}": {_READERS[log.form]}(\n'
        f'            spark.read,\n            f"{{root}}/{log.path}",\n'
        f"            {types},\n            absent,\n        ),\n"
    )


def _event_column(column: str, log: Log) -> str:
    kind, what = _EVENT[column]
    if column in log.columns:
        return f'        F.col("{column}"),\n'
    return f'        # FILL IN: {what}\n        F.lit(None).cast("{kind}").alias("{column}"),\n'


def test(name: str, logs: Sequence[Log], root: Path) -> str:
    """`tests/spark_jobs/test_<name>.py`."""
    day = next((log.day for log in logs if log.day), "2026-03-01")
    sample = f'SAMPLE = Path("{root}")'
    return f'''"""{name}: its declaration and source are filled in, and read a day of the sample."""

from pathlib import Path

from pyspark.sql import functions as F  # noqa: N812

from spark_jobs.sources import source_of

ROOT = Path(__file__).resolve().parents[2]
{sample}{"  # noqa: E501" if len(sample) > 110 else ""}
DAY = "{day}"
FILES = ("spark_jobs/contract/{name}.py", "spark_jobs/sources/{name}.py")
MOST_BROKEN = 0.05  # as ingest


def test_nothing_is_left_to_fill_in():
    left = [
        f"{{file}}:{{number}}: {{line.strip()}}"
        for file in FILES
        for number, line in enumerate((ROOT / file).read_text().splitlines(), 1)
        if "FILL IN" in line
    ]
    assert not left, f"{{len(left)}} lines are to be filled in:\\n" + "\\n".join(left)


def test_a_day_of_the_sample_becomes_events(spark):
    assert SAMPLE.is_dir(), f"the sample has gone from {{SAMPLE}}: put one there, or name another folder"
    delivery = source_of("{name}").read_delivery(spark, str(SAMPLE), DAY)
    events_df = delivery.events_df.cache()
    number = events_df.count()
    assert number, f"no event of {{DAY}} in {{SAMPLE}}: see read_delivery in {{FILES[1]}}"
    for column in ("event_id", "event_type", "user_id", "time_ms", "ds"):
        nulls = events_df.where(F.col(column).isNull()).count()
        assert not nulls, f"{{column}} of {{nulls}} of {{number}} events is null: see _events in {{FILES[1]}}"
    types = {{row["event_type"] for row in events_df.select("event_type").distinct().collect()}}
    assert "impression" in types, f"no impression among {{types}}: see event_type in {{FILES[1]}}"
    assert types <= {{"impression", "click", "conversion", "feedback"}}, f"unknown event types in {{types}}"
    broken = delivery.broken_df.count()
    assert broken <= MOST_BROKEN * number, f"{{broken}} lines are broken, {{number}} are events"
'''
