"""DuckDB making the samples of a day from the same files by the same rules as the Spark builder.

The other side of `bench_samples`, and what writes many days for experiments where there is no Spark. Written
for DuckDB's strengths: one pass over the events into column tables, hash aggregates and joins, window
functions with range frames, lists of structs sorted once. What it leaves out, in its own favour: weights,
requests that go on after midnight (the events that it is used for have neither), and any transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark_jobs.contract.clock import DAY_MS, shift_day
from spark_jobs.contract.features import MAX_REALTIME, MAX_STATIC, Dataset, Group, Kind, Measure, Owner
from spark_jobs.contract.tables import KEY_COLUMNS, sample_columns
from spark_jobs.samples.events import days_after
from spark_jobs.samples.statistics import Count, Keys, by_keys, count_column, counts, global_column

_TYPE = {
    "bigint": "BIGINT",
    "int": "INTEGER",
    "tinyint": "TINYINT",
    "float": "FLOAT",
    "string": "VARCHAR",
}
_EVENT_OF = {Measure.IMPRESSIONS: "impression", Measure.CLICKS: "click", Measure.CONVERSIONS: "conversion"}
_X = {Measure.CTR: Measure.CLICKS, Measure.CTCVR: Measure.CONVERSIONS}


def build(connection: Any, tables: Mapping[str, str], dataset: Dataset, ds: str, out: str) -> None:
    """Writes the samples of day `ds` to the Parquet file `out`.

    Args:
        connection: DuckDB connection.
        tables: Relations in SQL that hold `events`, `users` and `items`, see `of_files`.
        dataset: Dataset; without weights, and no request of it goes on after midnight.
        ds: The day.
        out: File to write; the day, by which the table is partitioned, is no column of it.

    Raises:
        ValueError: The dataset's candidates have weights.
    """
    if dataset.has_weights:
        raise ValueError(f"dataset {dataset.name!r} has weights, which these statements leave out")
    for statement in statements(tables, dataset, ds, out):
        connection.execute(statement)


def of_files(files: Sequence[str]) -> str:
    """The relation that Parquet files of a table hold, hive-partitioned by day and, of events, delivery."""
    columns = [name for name in ("ds", "delivery_ds") if f"/{name}=" in files[0]]
    types = ", ".join(f"'{name}': VARCHAR" for name in columns)
    return f"read_parquet({list(files)}, hive_partitioning=true, hive_types={{{types}}})"


def statements(tables: Mapping[str, str], dataset: Dataset, ds: str, out: str) -> list[str]:
    """The SQL of the build, in order."""
    return [
        *_people(tables, dataset, ds),
        *_statistics(dataset, ds),
        _today(dataset, ds),
        _labels(dataset, ds),
        _lists(dataset),
        _history(dataset, ds),
        _windows(dataset, ds),
        _samples(dataset, ds, out),
    ]


def _people(tables: Mapping[str, str], dataset: Dataset, ds: str) -> list[str]:
    first, last = shift_day(ds, -dataset.reach_days), shift_day(ds, days_after(dataset))
    offset = dataset.utc_offset_ms
    items = [f for f in dataset.of(Owner.ITEM) if f.name != "item_id"]
    context = [f for f in dataset.of(Owner.CONTEXT) if f.name not in ("hour", "weekday")]
    as_of = "SELECT * FROM {} WHERE ds <= '{}' QUALIFY ds = max(ds) OVER ()"
    read = " OR ".join(f"({which} AND once.ds >= '{shift_day(ds, -days)}')" for which, days in _read(dataset))
    return [
        f"""CREATE OR REPLACE TEMP VIEW scope AS SELECT * FROM {tables["events"]}
            WHERE ds BETWEEN '{first}' AND '{last}'""",
        """CREATE OR REPLACE TEMP TABLE repeated AS
            SELECT event_id, ds, min(delivery_ds) AS first_delivery_ds FROM scope
            WHERE (event_id, ds) IN (SELECT (event_id, ds) FROM scope WHERE ds <> delivery_ds)
            GROUP BY event_id, ds HAVING min(delivery_ds) <> max(delivery_ds)""",
        """CREATE OR REPLACE TEMP VIEW once AS SELECT scope.*, greatest(ds, delivery_ds) AS known_ds
            FROM scope LEFT JOIN repeated USING (event_id, ds)
            WHERE first_delivery_ds IS NULL OR first_delivery_ds = delivery_ds""",
        f"""CREATE OR REPLACE TEMP TABLE bots AS SELECT user_id, ds, known_ds FROM once GROUP BY ALL
            HAVING count(*) FILTER (event_type = 'impression') > {dataset.max_impressions_a_day}
            OR count(*) FILTER (event_type <> 'impression') > {dataset.max_impressions_a_day}""",
        f"CREATE OR REPLACE TEMP TABLE items AS {as_of.format(tables['items'], ds)}",
        f"CREATE OR REPLACE TEMP TABLE users AS {as_of.format(tables['users'], ds)}",
        f"""CREATE OR REPLACE TEMP TABLE people AS
            SELECT event_id, event_type, user_id, once.item_id, request_id,
            impression_id, time_ms, action, once.ds, delivery_ds,
            ((time_ms + {offset}) // 3600000 % 24)::INTEGER AS hour,
            (((time_ms + {offset}) // {DAY_MS} + 3) % 7)::INTEGER AS weekday,
            {", ".join(f"coalesce({f.name}, 0)::{_kind(f.kind)} AS {f.name}" for f in [*context, *items])}
            FROM once LEFT JOIN (SELECT * EXCLUDE (ds) FROM items) USING (item_id)
            ANTI JOIN bots ON once.user_id = bots.user_id AND once.ds = bots.ds
            AND bots.known_ds IN (once.ds, once.known_ds) WHERE {read}""",
    ]


def _read(dataset: Dataset) -> list[tuple[str, int]]:
    """Which events are read, and how many days back: as far as something counts or lists them."""
    days: dict[str, int] = {"action IS NOT NULL": dataset.history_days}
    for measure, event_type in _EVENT_OF.items():
        statistics = [f.statistic for f in dataset.features if f.statistic]
        windows = [s.days for s in statistics if measure in {count.measure for count in counts(s)}]
        days[f"event_type = '{event_type}'"] = max([0, *windows])
    actions = [f.statistic.days for f in dataset.features if f.statistic and f.statistic.action]
    days["action IS NOT NULL"] = max([dataset.history_days, *actions])
    return list(days.items())


def _statistics(dataset: Dataset, ds: str) -> list[str]:
    made = []
    keyed = by_keys(dataset.features, today=False)
    rates = {
        (f.statistic.measure, f.statistic.days) for f in dataset.features if f.statistic and f.statistic.days
    }
    for keys, features in keyed.items():
        wanted = sorted({(m, f.statistic.days) for f in features if f.statistic for m in counts(f.statistic)})
        columns = ", ".join(
            f"{_count(count, dataset, ds, days)} AS {count_column(keys, count, days)}"
            for count, days in wanted
        )
        oldest = shift_day(ds, -max(days for _, days in wanted))
        active = (
            f"AND user_id IN (SELECT user_id FROM people WHERE ds = '{ds}' AND event_type = 'impression')"
            if "user_id" in keys
            else ""
        )
        made.append(
            f"""CREATE OR REPLACE TEMP TABLE {_table(keys)} AS SELECT {", ".join(keys)}, {columns} FROM people
            WHERE ds >= '{oldest}' AND ds < '{ds}' AND delivery_ds < '{ds}' {active} GROUP BY ALL"""
        )
    columns = ", ".join(
        f"coalesce({_count(Count(_X[m]), dataset, ds, d)} / "
        f"nullif({_count(Count(Measure.IMPRESSIONS), dataset, ds, d)}, 0), 0) AS {global_column(m, d)}"
        for m, d in sorted(rates)
        if m.is_rate
    )
    made.append(
        f"""CREATE OR REPLACE TEMP TABLE rates AS SELECT {columns} FROM people
        WHERE ds < '{ds}' AND delivery_ds < '{ds}'"""
    )
    return made


def _today(dataset: Dataset, ds: str) -> str:
    columns, windows = [], []
    for i, (keys, features) in enumerate(by_keys(dataset.features, today=True).items()):
        windows.append(
            f"w{i} AS (PARTITION BY {', '.join(keys)} ORDER BY time_ms "
            "RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        )
        for count in sorted({c for f in features if f.statistic for c in counts(f.statistic)}):
            columns.append(
                f"count(*) FILTER ({_is(count, dataset)} AND delivery_ds <= '{ds}') "
                f"OVER w{i} AS {count_column(keys, count, 0)}"
            )
    windows.append(
        "wu AS (PARTITION BY user_id ORDER BY time_ms RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
    )
    columns.append(
        f"(count(*) FILTER (action IS NOT NULL AND delivery_ds <= '{ds}') OVER wu)::INTEGER AS earlier"
    )
    local = f"(time_ms + {dataset.utc_offset_ms})"
    return f"""CREATE OR REPLACE TEMP TABLE today AS SELECT *, {", ".join(columns)} FROM (
        SELECT * REPLACE (({local} // 3600000 % 24)::INTEGER AS hour,
        (({local} // {DAY_MS} + 3) % 7)::INTEGER AS weekday) FROM (
        SELECT * REPLACE (CASE event_type WHEN 'impression' THEN
        min(time_ms) FILTER (event_type = 'impression') OVER (PARTITION BY user_id, request_id)
        ELSE time_ms END AS time_ms) FROM people WHERE ds = '{ds}'))
        WINDOW {", ".join(windows)}"""


def _labels(dataset: Dataset, ds: str) -> str:
    return f"""CREATE OR REPLACE TEMP TABLE labels AS SELECT i.event_id,
        max((o.event_type = 'click')::TINYINT) AS label_click,
        max((o.event_type = 'conversion')::TINYINT) AS label_conversion
        FROM people i JOIN people o ON i.user_id = o.user_id AND i.impression_id = o.impression_id
        AND o.time_ms BETWEEN i.time_ms AND i.time_ms + {dataset.attribution_ms}
        WHERE i.ds = '{ds}' AND i.event_type = 'impression' AND o.ds >= '{ds}'
        AND o.event_type IN ('click', 'conversion') GROUP BY i.event_id"""


def _lists(dataset: Dataset) -> str:
    features = dataset.in_group(Group.CANDIDATE)
    fields = ", ".join(
        f"{f.name} := {_value(f, dataset)}" if f.statistic else f"{f.name} := {f.name}" for f in features
    )
    joins = " ".join(
        f"LEFT JOIN {_table(keys)} USING ({', '.join(keys)})"
        for keys, of in by_keys(features, today=False).items()
    )
    return f"""CREATE OR REPLACE TEMP TABLE lists AS SELECT user_id,
        list(struct_pack(time_ms := time_ms, event_id := event_id, earlier := earlier,
        request_id := request_id,
        impression_id := impression_id, label_click := coalesce(label_click, 0)::TINYINT, label_conversion :=
        (coalesce(label_click, 0) * coalesce(label_conversion, 0))::TINYINT, {fields})
        ORDER BY time_ms, event_id)
        FILTER (event_type = 'impression') AS candidate,
        list({_behaviour(dataset)} ORDER BY time_ms, event_id)
        FILTER (action IS NOT NULL AND delivery_ds <= ds) AS realtime
        FROM today LEFT JOIN labels USING (event_id) {joins} CROSS JOIN rates GROUP BY user_id
        HAVING count(*) FILTER (event_type = 'impression') > 0"""


def _history(dataset: Dataset, ds: str) -> str:
    return f"""CREATE OR REPLACE TEMP TABLE history AS SELECT user_id,
        list({_behaviour(dataset)} ORDER BY time_ms, event_id)[-{MAX_STATIC}:] AS history
        FROM (SELECT *, 0 AS earlier FROM people WHERE ds >= '{shift_day(ds, -dataset.history_days)}'
        AND ds < '{ds}' AND delivery_ds < '{ds}' AND action IS NOT NULL
        AND user_id IN (SELECT user_id FROM lists)) GROUP BY user_id"""


def _windows(dataset: Dataset, ds: str) -> str:
    """One row a user and window of the day, cut as `spark_jobs.samples.windows` says.

    A window ends at the first time by whose end more than `MAX_REALTIME` behaviours lie in it.
    """
    start, end = dataset.day_start_ms(ds), dataset.day_end_ms(ds)
    return f"""CREATE OR REPLACE TEMP TABLE windows AS WITH RECURSIVE times AS (
        SELECT user_id, time_ms, count(*)::INTEGER AS number,
        (sum(count(*)) OVER (PARTITION BY user_id ORDER BY time_ms))::INTEGER AS through
        FROM today WHERE action IS NOT NULL AND delivery_ds <= ds GROUP BY user_id, time_ms),
        cuts AS (SELECT user_id, {start}::BIGINT AS start_ms, 0 AS first FROM lists UNION ALL
        SELECT c.user_id, min(t.time_ms), min(t.through - t.number) FROM cuts c JOIN times t
        ON t.user_id = c.user_id AND t.time_ms > c.start_ms AND t.through > c.first + {MAX_REALTIME}
        GROUP BY c.user_id, c.start_ms)
        SELECT *, lead(start_ms, 1, {end}::BIGINT) OVER of_user AS end_ms, lead(first) OVER of_user AS next
        FROM cuts WINDOW of_user AS (PARTITION BY user_id ORDER BY start_ms)"""


def _cut() -> str:
    """Users, windows and their lists: what the windows before held has become history."""
    return f"""SELECT * EXCLUDE (first, next, realtime, candidate, history),
        (CASE WHEN first = 0 THEN history
        ELSE list_concat(coalesce(history, []), realtime[:first])[-{MAX_STATIC}:] END) AS static,
        list_transform(realtime[cut + 1:coalesce(next, len(realtime))],
        lambda x: struct_insert(x, visible := greatest(x.earlier - cut, 0))) AS realtime,
        list_transform(list_filter(candidate, lambda x: x.time_ms >= start_ms AND x.time_ms < end_ms),
        lambda x: struct_insert(x, visible := greatest(x.earlier - cut, 0))) AS candidate
        FROM (SELECT *, first + greatest(coalesce(next, len(realtime)) - first - {MAX_REALTIME}, 0) AS cut
        FROM windows JOIN lists USING (user_id) LEFT JOIN history USING (user_id))"""


def _samples(dataset: Dataset, ds: str, out: str) -> str:
    profile = dataset.of(Owner.PROFILE)
    made = {
        "user_id": "user_id",
        "window_start_ms": "start_ms",
        "window_end_ms": "end_ms",
        "label_click": "list_transform(candidate, lambda x: x.label_click)",
        "label_conversion": "list_transform(candidate, lambda x: x.label_conversion)",
    }
    for f in profile:
        own = _value(f, dataset) if f.statistic else f"coalesce({f.name}, 0)"
        made[f"profile_{f.name}"] = "user_id" if f.name == "user_id" else own
    for name, _ in sample_columns(dataset)[len(KEY_COLUMNS) :]:
        group, _, field = name.partition("_")
        made.setdefault(name, f"list_transform({group}, lambda x: x.{field})")
    columns = ", ".join(
        f"coalesce({made[n]}, [])::{_TYPE[kind[6:-1]]}[] AS {n}"
        if kind.startswith("array")
        else f"({made[n]})::{_TYPE[kind]} AS {n}"
        for n, kind in sample_columns(dataset)
        if n != "ds"
    )
    joins = " ".join(
        f"LEFT JOIN {_table(keys)} USING ({', '.join(keys)})" for keys in by_keys(profile, today=False)
    )
    return f"""COPY (SELECT {columns} FROM ({_cut()})
        LEFT JOIN (SELECT * EXCLUDE (ds) FROM users) USING (user_id) {joins} CROSS JOIN rates
        WHERE len(candidate) > 0 ORDER BY user_id, start_ms)
        TO '{out}' (FORMAT parquet, COMPRESSION zstd)"""


def _behaviour(dataset: Dataset) -> str:
    fields = ", ".join(f"{f.name} := {f.name}" for f in dataset.in_group(Group.STATIC))
    return f"struct_pack(time_ms := time_ms, earlier := earlier, {fields})"


def _value(feature: Any, dataset: Dataset) -> str:
    statistic = feature.statistic
    nothing = statistic.days + 1 if statistic.measure.is_recency else 0
    parts = [
        f"coalesce({count_column(statistic.keys, m, statistic.days)}, {nothing})" for m in counts(statistic)
    ]
    if not statistic.measure.is_rate:
        return f"least({parts[0]}, {feature.high})::FLOAT"
    prior = global_column(statistic.measure, statistic.days) if statistic.days else "0.0"
    return f"least(({parts[0]} + 20 * {prior}) / ({parts[1]} + 20), 1.0)::FLOAT"


def _count(count: Count, dataset: Dataset, ds: str, days: int) -> str:
    condition = f"FILTER ({_is(count, dataset)} AND ds >= '{shift_day(ds, -days)}')"
    if count.measure.is_recency:
        return f"min(date_diff('day', ds::DATE, DATE '{ds}')) {condition}"
    return f"count(*) {condition}"


def _is(count: Count, dataset: Dataset) -> str:
    """Whether an event is one that is counted."""
    if count.action:
        return f"action = {1 + dataset.actions.index(count.action)}"
    return f"event_type = '{_EVENT_OF[count.measure]}'"


def _table(keys: Keys) -> str:
    return f"by_{'_'.join(keys)}"


def _kind(kind: Kind) -> str:
    return {Kind.ID: "BIGINT", Kind.CATEGORY: "INTEGER", Kind.NUMBER: "FLOAT"}[kind]
