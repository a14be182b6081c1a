"""journey: trips of a small retailer become the log that the rules say, and both builders' same samples."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import samples_duckdb
from benchmarks.evidence import gradient_boosting, journey_floors, journey_samples, journey_table
from benchmarks.evidence import journey as trained
from benchmarks.evidence.scored import by_trip
from benchmarks.samples import compare
from model.data.reader import SamplesTable
from spark_jobs import ingest
from spark_jobs import journey as command
from spark_jobs.build_samples import samples_of
from spark_jobs.contract import locations
from spark_jobs.contract.clock import shift_day
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.journey import JOURNEY
from spark_jobs.lake.log import current_version, open_table
from spark_jobs.samples.deliveries import Deliveries
from spark_jobs.samples.inputs import inputs_of
from spark_jobs.sources import journey_log
from spark_jobs.sources.journey_log import PackageError, unit_hash, write_log

Row = dict[str, Any]
HOUSEHOLDS, PRODUCTS, STORES, WEEKS = 12, 190, 2, 16
BUSY = "2017-04-13"  # household 1 goes three times, first with far more lines than a window holds
FIRST_DAY = "2017-04-12"


def _day(week: int, weekday: int) -> str:
    return shift_day("2017-01-02", 7 * (week - 2) + weekday)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The retailer's four tables: what is bought follows from the seed."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(7)
    lines: list[Row] = []

    def trip(household: int, week: int, ds: str, hour: float, products: Any) -> None:
        at = datetime.datetime.fromisoformat(ds) + datetime.timedelta(
            seconds=round(3600 * (hour + 5))
        )  # the clock is UTC - 5
        basket = 10_000 + len({line["basket_id"] for line in lines})
        for product in products:
            full = 1 + product % 7
            discount = 0.25 * full if rng.random() < 0.3 else 0.0
            lines.append(
                dict(household_id=household, store_id=household % STORES, basket_id=basket,
                     product_id=product, quantity=1, sales_value=full - discount, retail_disc=discount,
                     coupon_disc=0.0, coupon_match_disc=0.0, week=week, transaction_timestamp=at)
            )  # fmt: skip

    for week in range(2, WEEKS + 1):
        for household in range(1, HOUSEHOLDS + 1):
            ds, hour = _day(week, int(rng.integers(7))), float(rng.uniform(0, 23.9))
            favourites = 1 + (household * 13 + rng.integers(0, 30, int(rng.integers(2, 12)))) % 160
            trip(household, week, ds, hour, sorted(set(favourites.tolist())))
    busy_week = next(week for week in range(2, WEEKS + 1) if _day(week, 0) <= BUSY < _day(week + 1, 0))
    for hour, products in ((8, range(1, 131)), (12, range(20, 90)), (18.5, (3, 5, 50, 90, *range(175, 189)))):
        trip(1, busy_week, BUSY, hour, products)
    trip(2, busy_week, BUSY, 23.9995, (7, 8, 9))  # ends before midnight
    write = {
        "transactions": lines,
        "promotions": [
            dict(product_id=p, store_id=s, week=w, display_location="0123456789A"[int(rng.integers(11))],
                 mailer_location="0ACDFHJLPXZ"[int(rng.integers(11))])
            for w in range(1, WEEKS + 1) for s in range(STORES) for p in range(1, PRODUCTS)
            if rng.random() < 0.4
        ],
        "products": [
            dict(product_id=p, manufacturer_id=p % 9, department=f"D{p % 4}",
                 brand=("National", "Private")[p % 2], product_category=f"C{p % 20}",
                 product_type=None if p % 50 == 0 else f"T{p % 40}", package_size=None)
            for p in range(1, PRODUCTS - 3)
        ],
        "demographics": [
            dict(household_id=h, age="65+", income="35-49K", home_ownership=None, marital_status="Married",
                 household_size="5+", household_comp="2 Adults Kids", kids_count="3+")
            for h in (1, 2)
        ],
    }  # fmt: skip
    for name, rows in write.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def sure() -> Iterator[int]:
    """So few trips are popular in a small shop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journey_log, "SURE", 12)
        yield 12


@pytest.fixture(scope="module")
def log(tables: Path, sure: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of all days."""
    out = tmp_path_factory.mktemp("log") / "raw"
    write_log(tables, out)
    return out


def events(log: Path, name: str = "events") -> list[Row]:
    with duckdb.connect() as connection:
        relation = connection.execute(
            f"SELECT * FROM read_parquet('{log}/{name}/*/*.parquet', hive_partitioning=true, "
            "hive_types={'ds': VARCHAR}) ORDER BY ds, time_ms, event_id"
        )
        names = [column[0] for column in relation.description]
        return [dict(zip(names, row, strict=True)) for row in relation.fetchall()]


def test_candidates_clicks_conversions_and_purchases_follow_the_rules(
    log: Path, tables: Path, sure: int
) -> None:
    lines = pq.read_table(tables / "transactions.parquet").to_pylist()
    promoted = {
        (row["week"], row["store_id"], row["product_id"]): row
        for row in pq.read_table(tables / "promotions.parquet").to_pylist()
    }
    type_of = {
        row["product_id"]: row["product_type"]
        for row in pq.read_table(tables / "products.parquet").to_pylist()
    }
    trips: dict[int, list[Row]] = {}
    for line in lines:
        trips.setdefault(line["basket_id"], []).append(line)
    candidates, clicks, bought = set(), set(), set()
    for basket, own in trips.items():
        week, store = own[0]["week"], own[0]["store_id"]
        products = {line["product_id"] for line in own}
        types = {type_of.get(product) for product in products} - {None}
        for product in range(1, PRODUCTS):
            if week < 13 or (week, store, product) not in promoted:
                continue
            before = sum(line["product_id"] == product and week - 12 <= line["week"] < week for line in lines)
            drawn = unit_hash(np.array([basket]), np.array([product]))[0] < before / sure
            if product in products or drawn:
                candidates.add((basket, product))
                if product in products or type_of.get(product) in types:
                    clicks.add((basket, product))
                if product in products:
                    bought.add((basket, product))
    made: dict[str, set[tuple[int, int]]] = {}
    for event in events(log):
        made.setdefault(event["event_type"], set()).add((int(event["request_id"]), event["item_id"]))
    assert made["impression"] == candidates
    assert made["click"] == clicks
    assert made["conversion"] == bought
    assert made["feedback"] == {(line["basket_id"], line["product_id"]) for line in lines}
    assert len(bought) < len(clicks) < len(candidates)
    assert len(candidates) > 300


def test_which_products_are_drawn_is_the_same_everywhere() -> None:
    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    trips, products = np.arange(31_198_570_044, 31_198_570_144), np.arange(25_671, 25_871)
    drawn = unit_hash(trips[:, None], products[None, :])
    wanted = [[(mix((mix(int(t)) + int(p)) % 2**64) >> 11) * 2.0**-53 for p in products] for t in trips]
    assert np.array_equal(drawn, wanted)
    assert abs(drawn.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.03


def test_what_a_trip_did_is_known_after_it_and_on_its_day(log: Path, tables: Path) -> None:
    began = {
        row["basket_id"]: int(row["transaction_timestamp"].replace(tzinfo=datetime.UTC).timestamp() * 1000)
        for row in pq.read_table(tables / "transactions.parquet").to_pylist()
    }
    late = 0
    for event in events(log):
        start = began[int(event["request_id"])]
        day_end = JOURNEY.day_end_ms(event["ds"])
        if event["event_type"] == "impression":
            assert event["time_ms"] == start
            assert event["action"] is None
        else:
            assert start < event["time_ms"] == min(start + 60_000, day_end - 1)
            late += event["time_ms"] == day_end - 1
        assert JOURNEY.day_start_ms(event["ds"]) <= event["time_ms"] < day_end
    assert late >= 3  # of household 2, a few seconds before midnight


def test_a_candidate_has_the_price_of_the_days_before_and_a_purchase_its_own(log: Path, tables: Path) -> None:
    lines = pq.read_table(tables / "transactions.parquet").to_pylist()
    day = {line["basket_id"]: None for line in lines}
    made = events(log)
    for event in made:
        day[int(event["request_id"])] = event["ds"]
    sold = [(line, day[line["basket_id"]]) for line in lines]
    sold_of: dict[int, list[tuple[Row, Any]]] = {}
    for line, ds in sold:
        sold_of.setdefault(line["product_id"], []).append((line, ds))
    kinds = {"store": 0, "elsewhere": 0, "never": 0}
    for event in made:
        if event["event_type"] == "feedback":
            of_trip = (line for line, _ in sold_of[event["item_id"]])
            line = next(line for line in of_trip if line["basket_id"] == int(event["request_id"]))
            full = line["sales_value"] + line["retail_disc"]
            assert (event["price"], event["discount"]) == pytest.approx((full, line["retail_disc"] / full))
            continue
        of_item = [(line, ds) for line, ds in sold_of.get(event["item_id"], ()) if ds < event["ds"]]
        of_store = [(line, ds) for line, ds in of_item if line["store_id"] == event["store_id"]]
        kinds["store" if of_store else "elsewhere" if of_item else "never"] += 1
        known = of_store or of_item
        if not known:
            assert (event["price"], event["discount"]) == (0, 0)
            continue
        last = max(known, key=lambda one: (one[1], one[0]["transaction_timestamp"], one[0]["basket_id"]))[0]
        full = last["sales_value"] + last["retail_disc"]
        assert (event["price"], event["discount"]) == pytest.approx((full, last["retail_disc"] / full))
    assert min(kinds.values()) > 0, kinds


def test_the_history_is_what_was_before_the_first_day_and_a_log_is_written_once(
    tables: Path,
    sure: int,
    log: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journey_log, "OFFERS_BEFORE_DAYS", 10)
    given = ["--tables", str(tables), "--out", str(tmp_path / "raw"), "--first-day", FIRST_DAY]
    assert command.main(given) == 0
    rows = json.loads(capfd.readouterr().out.splitlines()[-1])["rows"]
    whole, history = events(log), events(tmp_path / "raw", "history")
    assert events(tmp_path / "raw") == [event for event in whole if event["ds"] >= FIRST_DAY]
    oldest = shift_day(FIRST_DAY, -journey_log.OFFERS_BEFORE_DAYS)
    before = [event for event in whole if event["ds"] < FIRST_DAY]
    assert history == [e for e in before if e["event_type"] == "feedback" or e["ds"] >= oldest]
    assert len(before) > len(history) > 0
    assert (rows["history"], rows["users"]) == (len(history), HOUSEHOLDS)
    assert command.main(given) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["rows"] == {}
    assert command.main(["--tables", str(tmp_path), "--out", str(tmp_path / "other")]) == 1
    assert "has no transactions.parquet" in capfd.readouterr().err


def test_without_the_package_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journey_log, "find_spec", lambda _: None)
    with pytest.raises(PackageError, match="make setup DATASET=journey"):
        journey_log.package_folder()


@pytest.mark.slow
def test_spark_and_duckdb_make_the_same_samples_of_a_day_that_is_cut(
    spark: Any, lake: Path, tables: Path, sure: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The busy day has a household with more behaviours than a window holds, at three times."""
    write_log(tables, tmp_path / "raw", BUSY)
    monkeypatch.setenv("MTGR_JOURNEY", str(tmp_path / "raw"))
    assert ingest.main(["--dataset", "journey", "--history"]) == 0
    assert ingest.main(["--dataset", "journey", "--ds", BUSY]) == 0
    uris = {name: locations.table("journey", name) for name in ("events", "users", "items")}
    versions = {name: current_version(uri) for name, uri in uris.items()}
    ungated = Deliveries(allowed={"all": "a test"})
    with (
        inputs_of(spark, JOURNEY, [BUSY], versions, ungated) as inputs,
        samples_of(inputs, JOURNEY, [BUSY]) as samples_df,
    ):
        samples_df.coalesce(1).write.parquet(str(tmp_path / "spark"))
    held = {name: samples_duckdb.of_files(open_table(uri).file_uris()) for name, uri in uris.items()}
    with duckdb.connect() as connection:
        samples_duckdb.build(connection, held, JOURNEY, BUSY, str(tmp_path / "duckdb.parquet"))
    made = [str(path) for path in (tmp_path / "spark").glob("*.parquet")]
    same = compare(made, str(tmp_path / "duckdb.parquet"), tmp_path, JOURNEY)
    rows = pq.read_table(tmp_path / "duckdb.parquet").to_pylist()
    of_first = [row for row in rows if row["user_id"] == 1]
    assert same["rows"] == len(rows) > len({row["user_id"] for row in rows})
    # The first trip's 130 lines are of one millisecond: their window keeps the last 100, the next moves them.
    assert [len(row["realtime_time_ms"]) for row in of_first] == [0, 100, 88]
    known = [len(row["static_time_ms"]) for row in of_first]
    assert known == [known[0], known[0], known[0] + 130]


def test_models_train_on_days_in_order_and_results_are_kept_whole(
    log: Path, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = sorted(path.name.removeprefix("ds=") for path in (log / "events").glob("ds=*"))[-12:]
    made = journey_samples.write_samples(str(log), days, 1)
    assert made["written"] == made["days"] > 8
    assert journey_samples.write_samples(str(log), days, 1)["written"] == 0
    out = tmp_path / "out"
    small = "tiny,model.d_model=16,model.max_static=20"
    given = ["--models", small, "--seeds", "1", "--from", days[0], "--out", str(out)]
    given += ["--test-from", days[-3], "--test-to", days[-1]]
    assert trained.main(given) == 0
    report = json.loads((out / small / "1.json").read_text())
    assert report["days"] == [days[0], days[-4], len(days) - 3]
    with np.load(out / small / "1.npz") as scores, np.load(out / "frame.npz") as frame:
        assert len(scores["ctcvr_live"]) == len(frame["user_id"]) > 50
        live = scores["ctcvr_live"]
        rows = gradient_boosting.rows_of(SamplesTable(JOURNEY), days[-3:])
        assert rows.values.shape == (len(live), len(rows.names))
        assert np.array_equal(rows.frame["label_conversion"], frame["label_conversion"])
        counts = journey_floors.counted(rows, "user_item_buy_365d")
        (out / "lightgbm_lambdarank").mkdir()
        np.savez(out / "lightgbm_lambdarank" / "1.npz", **counts)
        better = {key: frame["label_conversion"].astype(np.float32) for key in counts}
        result = journey_table.joined(out, small)
        ours, theirs = (by_trip(dict(frame), score).gauc for score in (live, counts["ctcvr_live"]))
    assert result["mtgr_minus"]["lightgbm_lambdarank"]["gain"] == pytest.approx(ours - theirs)
    assert result["summary"]["journey_mtgr_ctcvr_gauc_request"] == pytest.approx(ours, abs=1e-5)
    assert small in journey_table.table(result)
    (out / "lightgbm_lambdarank_36_weeks").mkdir()
    np.savez(out / "lightgbm_lambdarank_36_weeks" / "1.npz", **better)
    with pytest.raises(CommandError, match="no scores of 'tiny_dcn'"):
        journey_table.joined(out, small, "tiny_dcn")
    both = journey_table.joined(out, small, "lightgbm_lambdarank")
    assert both["summary"]["journey_mtgr_minus_lambdarank"] == pytest.approx(
        ours - 1, abs=1e-5
    )  # of the best
    assert both["variant_minus"][small]["gain"] == pytest.approx(theirs - ours)
    last = journey_table.table(both).splitlines()[-2:]
    assert sum(line.endswith("| variant |") for line in last) == 1
    before = (out / small / "1.json").stat().st_mtime_ns
    assert trained.main(given) == 0
    assert (out / small / "1.json").stat().st_mtime_ns == before


def test_weights_are_refused_by_the_statements_that_leave_them_out() -> None:
    weighed = dataclasses.replace(JOURNEY, has_weights=True)
    with pytest.raises(ValueError, match="has weights"):
        samples_duckdb.build(None, {}, weighed, BUSY, "")


def test_the_documented_tables_are_those_of_the_files() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "journey.md").read_text()
    for module in (journey_floors, journey_table):
        assert module.table(json.loads(module.RESULT.read_text())) in document, (
            f"put the table of {module.__name__} into docs/journey.md"
        )
