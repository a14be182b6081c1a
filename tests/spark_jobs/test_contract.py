"""The contract: days, columns and declarations that contradict themselves."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spark_jobs.contract.clock import DAY_MS, days_between, parse_day, shift_day
from spark_jobs.contract.datasets import dataset_named
from spark_jobs.contract.features import Dataset, FeatureSpec, Group, Kind, Measure, Owner, Statistic
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.kuairand import KUAIRAND
from spark_jobs.contract.tables import dimension_columns, event_columns, rows_digest, sample_columns


def number(name: str, owner: Owner, **fields: object) -> FeatureSpec:
    return FeatureSpec(name=name, owner=owner, kind=Kind.NUMBER, description="a number", **fields)


@pytest.mark.parametrize(
    "ds", ["2026-2-01", "2026-02-30", "20260201", "today", "2026-01-01'; rm", "", "2025-02-29"]
)
def test_a_day_that_is_none_is_refused_by_name(ds: str) -> None:
    with pytest.raises(ValueError, match="is not a day"):
        parse_day(ds)


@pytest.mark.parametrize(
    ("ds", "days", "result"),
    [
        ("2024-02-28", 1, "2024-02-29"),
        ("2025-12-31", 1, "2026-01-01"),
        ("2026-03-29", 1, "2026-03-30"),
        ("2026-01-01", -1, "2025-12-31"),
    ],
)
def test_shift_day_over_leap_days_year_ends_and_clock_changes(ds: str, days: int, result: str) -> None:
    assert shift_day(ds, days) == result


def test_days_between_includes_both_ends() -> None:
    assert days_between("2026-02-27", "2026-03-01") == ["2026-02-27", "2026-02-28", "2026-03-01"]
    assert days_between("2026-03-02", "2026-03-01") == []


@pytest.mark.parametrize("ds", ["2026-03-29", "2026-10-25", "2024-02-29"])
def test_every_day_has_24_hours_and_follows_the_dataset_clock(ds: str) -> None:
    assert KUAIRAND.day_end_ms(ds) - KUAIRAND.day_start_ms(ds) == DAY_MS
    assert FOODLOG.day_start_ms(ds) - KUAIRAND.day_start_ms(ds) == 8 * 3_600_000


def test_day_start_of_kuairand_is_midnight_in_china() -> None:
    assert KUAIRAND.day_start_ms("2022-04-25") == 1650816000000


def test_unknown_dataset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown dataset 'foodlgo'; known: foodlog, journey, kuairand"):
        dataset_named("foodlgo")


def test_columns_follow_from_the_declaration() -> None:
    dataset = Dataset(
        name="x",
        actions=("click",),
        conversion="",
        features=(
            FeatureSpec(name="user_id", owner=Owner.PROFILE, kind=Kind.ID, description=""),
            FeatureSpec(name="item_id", owner=Owner.ITEM, kind=Kind.ID, description=""),
            number("price", Owner.ITEM),
            number("distance", Owner.CONTEXT),
            FeatureSpec(name="hour", owner=Owner.CONTEXT, kind=Kind.CATEGORY, cardinality=24, description=""),
            number(
                "seen",
                Owner.CROSS,
                statistic=Statistic(keys=("user_id", "hour"), measure=Measure.CTR, days=1),
            ),
        ),
    )
    assert event_columns(dataset)[-1] == ("distance", "float")
    assert dimension_columns(dataset, Owner.PROFILE) == [("user_id", "bigint"), ("ds", "string")]
    assert dimension_columns(dataset, Owner.ITEM) == [
        ("item_id", "bigint"),
        ("price", "float"),
        ("ds", "string"),
    ]
    names = [name for name, _ in sample_columns(dataset)]
    assert names[:5] == ["user_id", "ds", "window_start_ms", "window_end_ms", "profile_user_id"]
    assert names[-5:] == [
        "candidate_item_id",
        "candidate_price",
        "candidate_distance",
        "candidate_hour",
        "candidate_seen",
    ]
    assert dict(sample_columns(dataset))["static_price"] == "array<float>"


@pytest.mark.parametrize("dataset", [FOODLOG, KUAIRAND], ids=lambda d: d.name)
def test_no_outcome_and_no_position_is_a_feature(dataset: Dataset) -> None:
    names = {feature.name for feature in dataset.features}
    assert not names & {"position", "play_time_ms", "is_like", "long_view", "label_click", "label_conversion"}
    assert all(Group.CANDIDATE not in f.owner.groups for f in dataset.of(Owner.ACTION))


def test_the_contract_needs_the_standard_library_only() -> None:
    code = "import sys, spark_jobs.contract.datasets, spark_jobs.contract.locations; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"pyspark", "numpy", "torch", "mlflow"} & set(loaded.stdout.split())


def changed(name: str, /, **fields: object) -> Dataset:
    """FOODLOG with one feature changed."""
    assert any(feature.name == name for feature in FOODLOG.features)
    features = tuple(
        dataclasses.replace(feature, **fields) if feature.name == name else feature
        for feature in FOODLOG.features
    )
    return dataclasses.replace(FOODLOG, features=features)


CTR_1D = Statistic(keys=("item_id",), measure=Measure.CTR, days=1)


@pytest.mark.parametrize(
    "other",
    [
        changed("price", description="the price"),
        changed("cuisine", cardinality=64),
        changed("price", high=20_000.0),
        changed("home_cell", table="home_cell"),
        dataclasses.replace(FOODLOG, conversion="an order"),
        dataclasses.replace(FOODLOG, late_days=5),
    ],
    ids=["description", "number of values", "range", "table", "text of the conversion", "late days"],
)
def test_what_changes_no_row_makes_no_day_again(other: Dataset) -> None:
    assert other != FOODLOG
    assert rows_digest(other) == rows_digest(FOODLOG)


def test_an_offset_of_whole_hours_is_one_offset_however_it_is_written() -> None:
    assert dataclasses.replace(FOODLOG, utc_offset_hours=8.0) == dataclasses.replace(
        FOODLOG, utc_offset_hours=8
    )
    digests = {rows_digest(dataclasses.replace(FOODLOG, utc_offset_hours=hours)) for hours in (8, 8.0, 7.75)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    "other",
    [
        changed("price", name="cost"),
        changed("price", low=5.0),
        changed("user_clicks_7d", high=3.0),
        changed("item_ctr_7d", statistic=CTR_1D),
        changed("price", owner=Owner.CONTEXT),
        dataclasses.replace(FOODLOG, features=FOODLOG.features[:-1]),
        dataclasses.replace(FOODLOG, features=FOODLOG.features[::-1]),
        dataclasses.replace(FOODLOG, history_days=91),
        dataclasses.replace(FOODLOG, attribution_ms=1),
        dataclasses.replace(FOODLOG, utc_offset_hours=0.25),
        dataclasses.replace(FOODLOG, max_impressions_a_day=10),
    ],
    ids=lambda _: "",
)
def test_what_changes_rows_makes_the_days_again(other: Dataset) -> None:
    assert rows_digest(other) != rows_digest(FOODLOG)


@pytest.mark.parametrize("kind", [Dataset, FeatureSpec, Statistic])
def test_the_page_of_declarations_names_every_field(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    page = (Path(__file__).resolve().parents[2] / "docs" / "declaration.md").read_text()
    rows = page.split(f"## `{kind.__name__}`")[1].split("\n## ")[0]
    first = {
        cell for line in rows.splitlines() for cell in re.findall(r"`(\w+)`", line.split("|")[1:2].__str__())
    }
    assert {field.name for field in dataclasses.fields(kind)} <= first
    names = {Dataset: (), FeatureSpec: [o.name for o in Owner], Statistic: [m.name for m in Measure]}[kind]
    assert set(names) <= first
