"""DuckDB's SQL and Spark make the same samples of foodlog, feature by feature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.samples import bench, compare, extrapolated, table
from benchmarks.samples_events import World
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.contract.tables import sample_columns


@pytest.mark.slow
def test_duckdb_makes_the_same_samples(
    spark: Any, lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTGR_LAKE", "set by bench")  # and set back after the test
    point = bench(spark, World(impressions=1_000), 1, tmp_path / "bench")
    assert point["rows"] > 15
    assert point["equal_columns"] == len(sample_columns(FOODLOG)) - 1
    assert point["mean_lengths"]["static"] > 10
    samples = str(next((tmp_path / "bench" / "foodlog" / "samples").rglob("*.parquet")))
    with pytest.raises(ValueError, match="the two sides made different samples: rows:"):
        compare([samples], str(tmp_path / "bench" / "duckdb.parquet"), tmp_path)


def test_the_line_goes_through_all_sizes_and_says_how_far_off_they_are() -> None:
    def point(impressions: int, seconds: float) -> dict[str, Any]:
        return {"impressions": impressions, "seconds": {"spark": [seconds], "spark_cpu": [2 * seconds]}}

    assert extrapolated([point(10, 1.0), point(20, 2.0)], 100) == {}
    made = extrapolated([point(10, 3.0), point(20, 4.0), point(40, 6.0)], 100)["extrapolated"]
    assert (made["spark_seconds"], made["spark_cpu_seconds"]) == (12, 24)
    assert made["spark_microseconds_an_impression"] == 100_000.0
    assert made["how"] == "line through 3 sizes, off by at most 0.0%"
    bent = extrapolated([point(10, 3.0), point(20, 4.0), point(40, 16.0)], 100)["extrapolated"]
    assert bent["spark_off_line"] > 0.2


def test_the_documented_tables_are_those_of_the_file() -> None:
    root = Path(__file__).resolve().parents[2]
    result = json.loads((root / "benchmarks" / "results" / "bench_samples.json").read_text())
    assert table(result) in (root / "docs" / "samples.md").read_text()
