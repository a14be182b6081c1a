"""The gate command over a lake: what passes, what stops the run, what it leaves behind."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from expectations import gate
from expectations.judging.verdict import Verdict
from expectations.measuring.partitions import inspect_samples
from expectations.rules.listing import rule_tables
from expectations.rules.samples import samples_suite
from spark_jobs.contract import locations
from spark_jobs.contract.clock import HISTORY_DS, shift_day
from spark_jobs.contract.features import Owner
from spark_jobs.contract.tables import dimension_columns, event_columns, sample_columns
from spark_jobs.lake.verdicts import Standing, path_of, read, standings
from tests.expectations.mini import DS, MINI, event, sample, valid_events

ARROW = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "int": pa.int32(),
    "tinyint": pa.int8(),
    "float": pa.float32(),
}
NEXT = shift_day(DS, 1)
DAY_MINUTES = 24 * 60


def arrow_type(kind: str) -> pa.DataType:
    item = kind.removeprefix("array<").removesuffix(">")
    return pa.list_(ARROW[item]) if item != kind else ARROW[kind]


def write(
    name: str,
    columns: list[tuple[str, str]],
    rows: list[dict[str, Any]],
    partitions: list[str],
    metadata: dict[str, Any] | None = None,
) -> None:
    schema = pa.schema([(column, arrow_type(kind)) for column, kind in columns])
    table = pa.Table.from_pylist(rows, schema=schema)
    said = CommitProperties(custom_metadata={"userMetadata": json.dumps(metadata)} if metadata else {})
    uri = locations.table("mini", name)
    write_deltalake(uri, table, partition_by=partitions, mode="append", commit_properties=said)


def write_events(rows: list[dict[str, Any]]) -> None:
    write("events", event_columns(MINI), rows, ["ds", "delivery_ds"])


def next_day(**change: Any) -> list[dict[str, Any]]:
    """The valid delivery one day later."""
    day = {"ds": NEXT, "delivery_ds": NEXT}
    rows = [
        row
        | day
        | {"event_id": row["event_id"] + "2", "time_ms": row["time_ms"] + DAY_MINUTES * 60_000}
        | {"impression_id": row["impression_id"] + "2"}
        for row in valid_events()
    ]
    return [*rows[:-1], rows[-1] | change]


@pytest.fixture
def mini(lake: Path, spark: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lake with one valid delivery of the mini dataset."""
    monkeypatch.setattr("spark_jobs.contract.datasets.dataset_named", lambda name: MINI)
    monkeypatch.setattr(gate, "spark_session", lambda name: spark)
    write_events(valid_events())
    users = [{"user_id": user, "age": 30.0, "member": 1, "ds": DS} for user in (1, 2)]
    items = [{"item_id": item, "price": 9.5, "ds": DS} for item in (10, 11)]
    write("users", dimension_columns(MINI, Owner.PROFILE), users, ["ds"])
    write("items", dimension_columns(MINI, Owner.ITEM), items, ["ds"])
    return lake.parent


def run(capsys: pytest.CaptureFixture[str], *days: str) -> tuple[int, dict[str, Any]]:
    code = gate.main(["--dataset", "mini", "--suite", "events", "--ds", *days])
    output = capsys.readouterr().out.splitlines()
    return code, json.loads(output[-1])


def quarantined(stage: str = "gate_events") -> list[dict[str, Any]]:
    rows = DeltaTable(locations.table("mini", "quarantine")).to_pyarrow_table().to_pylist()
    return [row for row in rows if row["stage"] == stage]


@pytest.mark.timeout(1200)
def test_a_day_of_the_history_has_a_gate_like_a_day_of_the_log(
    mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One delivery of many days, each judged by itself; what is wrong with one of them is its own."""
    eve, before = shift_day(DS, -1), shift_day(DS, -2)
    snapshots = {"users": ("user_id", (1, 2), Owner.PROFILE), "items": ("item_id", (10, 11), Owner.ITEM)}
    for name, (key, values, owner) in snapshots.items():
        rows = [{key: value, "ds": HISTORY_DS} for value in values]
        write(name, dimension_columns(MINI, owner), rows, ["ds"])
    rows = []
    for days, ds in ((-1, eve), (-2, before)):
        for row in valid_events():
            moved = {"event_id": f"{row['event_id']}{ds}", "impression_id": f"{row['impression_id']}{ds}"}
            moved |= {"time_ms": row["time_ms"] + days * DAY_MINUTES * 60_000}
            rows.append(row | moved | {"ds": ds, "delivery_ds": HISTORY_DS})
    rows[-1]["user_id"] = 987654321
    ours = {"stage": "ingest", "partition": f"delivery_ds={HISTORY_DS}"}
    write("events", event_columns(MINI), rows, ["ds", "delivery_ds"], ours)
    assert run(capsys, eve)[0] == 0
    code, result = run(capsys, before)
    assert (code, result["failed"]) == (1, [f"{before}/user_known"])
    stands = standings("mini", "events", [DS], of_history=[eve, before])
    assert stands.of == {before: Standing.FAILED, eve: Standing.PASSED, DS: Standing.UNJUDGED}


@pytest.mark.parametrize(("left_out", "built_share"), [(True, 1.0), (False, 1.5)])
def test_samples_of_a_history_day_are_held_against_what_they_were_built_from(
    lake: Path, spark: Any, left_out: bool, built_share: float
) -> None:
    """A request that began the evening before is of that evening, unless its day failed and is left out."""
    eve = shift_day(DS, -1)
    rows = [
        event("night", "impression", -5, "night", ds=eve, delivery_ds=HISTORY_DS),
        event("a", "impression", 10, "a", delivery_ds=HISTORY_DS),
        *(event(of, "impression", 13 * 60, of, delivery_ds=HISTORY_DS, request_id="r2") for of in "bc"),
    ]
    write("events", event_columns(MINI), rows, ["ds", "delivery_ds"])
    made = {"stage": "build_samples", "partition": f"ds={DS}", "inputs": {"left_out": [eve] * left_out}}
    write("samples", sample_columns(MINI), [sample()], ["ds"], made)
    facts = inspect_samples(spark, MINI, [DS], samples_suite(MINI, MINI.limits))[DS].facts
    assert facts["built_share"] == built_share


@pytest.mark.timeout(1200)  # two Delta writes: minutes on a machine that does much else
def test_a_broken_row_stops_the_run_and_goes_to_quarantine_until_repaired(
    mini: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_events(next_day(distance=math.nan, user_id=987654321))
    with caplog.at_level(logging.INFO):
        code, result = run(capsys, NEXT, DS)
    assert code == 1
    assert result["verdicts"] == {DS: True, NEXT: False}
    assert set(result["failed"]) == {f"{NEXT}/distance_values", f"{NEXT}/user_known"}
    assert standings("mini", "events", [DS, NEXT]).of == {DS: Standing.PASSED, NEXT: Standing.FAILED}
    assert f"mini {NEXT}: table events, column distance: 1, allowed: no row breaks it" in caplog.text
    (row,) = quarantined()
    assert row["reason"] == "distance_values"
    assert json.loads(row["record"])["event_id"] == "c2"
    verdict = json.loads((mini / "gates" / "mini" / "events" / f"{NEXT}.json").read_text())
    assert not verdict["success"]
    assert verdict["baseline_days"] == [DS]
    docs = list((mini / "data_docs").rglob("*.html")) + list((mini / "data_docs").rglob("*.json"))
    assert len(docs) >= 4
    assert not [path for path in docs if "987654321" in path.read_text()]  # no id of a user in the docs,
    assert "987654321" not in caplog.text + json.dumps(
        [result, verdict]
    )  # nor in what is logged or handed on
    _repair()
    assert standings("mini", "events", [NEXT]).of == {NEXT: Standing.UNJUDGED}
    code, result = run(capsys, NEXT)
    assert (code, result["failed"]) == (0, [])
    assert standings("mini", "events", [NEXT]).of == {NEXT: Standing.PASSED}
    assert quarantined() == []


def test_a_broken_sample_goes_to_quarantine_with_the_rules_that_it_breaks(
    mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sample(static_action=[1, 3], profile_age=math.nan)
    write("samples", sample_columns(MINI), [broken], ["ds"])
    code = gate.main(["--dataset", "mini", "--suite", "samples", "--ds", DS])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, result["success"]) == (1, False)
    assert {f"{DS}/static_action_values", f"{DS}/profile_age_values"} == set(result["failed"])
    (row,) = quarantined("gate_samples")
    assert row["log"] == "samples"
    assert set(row["reason"].split(", ")) == {"static_action_values", "profile_age_values"}
    assert json.loads(row["record"])["candidate_impression_id"] == ["a", "b", "c"]


def test_what_an_operator_allows_is_of_the_rows_that_were_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    suite = samples_suite(MINI, MINI.limits)
    failed = Verdict(dataset="mini", suite="samples", ds=DS, success=False, table="t", version=3)

    def allowed(verdict: Verdict, allow: str | None = None) -> str:
        concluded = gate._conclude(verdict, suite, allow)
        written = read(path_of("mini", "samples", DS)) or {}
        assert written["allowed"] == concluded.allowed
        assert concluded.is_usable is bool(concluded.allowed or concluded.success)
        return concluded.allowed

    assert allowed(failed) == ""
    assert allowed(failed, "a holiday") == "a holiday"
    assert "FAILED and is used nevertheless: a holiday" in caplog.text
    assert allowed(failed) == "a holiday"  # a task that is cleared does not take it back
    assert allowed(failed, "") == ""
    assert allowed(failed, "a holiday") == "a holiday"
    assert allowed(replace(failed, version=4)) == ""  # the day was built again
    assert allowed(failed) == ""
    assert allowed(replace(failed, success=True), "a holiday") == ""  # nothing to allow


def _repair() -> None:
    DeltaTable(locations.table("mini", "events")).delete(f"delivery_ds = '{NEXT}'")
    write_events(next_day())


def test_an_absent_day_fails_by_name(
    mini: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    code, result = run(capsys, NEXT)
    assert code == 1
    assert result["failed"] == [f"{NEXT}/rows_present"]
    assert f"upstream day {NEXT} absent" in caplog.text


def test_a_lake_without_tables_fails(
    lake: Path, spark: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "spark_session", lambda name: spark)
    code = gate.main(["--dataset", "foodlog", "--suite", "samples", "--ds", DS])
    assert code == 1
    assert json.loads(capsys.readouterr().out)["failed"] == [f"{DS}/rows_present"]


def test_a_whole_delivery_in_other_units_is_seen_by_drift(
    mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metres = [row | {"distance": row["distance"] * 30} for row in next_day()]  # still in its range
    write_events(metres)
    code, result = run(capsys, DS, NEXT)
    assert code == 1
    assert result["failed"] == [f"{NEXT}/distance_drift"]


def test_a_renamed_column_and_a_partial_day_are_seen(mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_events([row | {"weather": None} for row in next_day()[:1]])
    code, result = run(capsys, DS, NEXT)
    assert code == 1
    rules = {name.split("/")[1] for name in result["failed"]}
    assert {"hours_covered", "weather_null_drift"} <= rules
    assert not {"impressions_volume", "fresh"} & rules  # they follow from the hours


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "foodlog", "--suite", "sampels", "--ds", DS],
        ["--dataset", "foodlog", "--suite", "samples"],
        ["--dataset", "foodlog", "--suite", "samples", "--ds"],
        ["--dataset", "foodlog", "--suite", "samples", "--ds", "2026-02-30"],
        ["--dataset", "nolog", "--suite", "samples", "--ds", DS],
        ["--suite", "samples", "--ds", DS],
        ["--dataset", "foodlog", "--suite", "evaluation", "--ds", DS, "--preset", "../x"],
    ],
)
def test_wrong_usage_validates_nothing_and_says_so(arguments: list[str]) -> None:
    assert gate.main(arguments) == 2


def test_a_missing_evaluation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MTGR_RUNS", str(tmp_path))
    assert gate.main(["--dataset", "foodlog", "--suite", "evaluation", "--ds", DS]) == 1
    assert "there is no evaluation at" in caplog.text


def test_the_document_lists_the_rules() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "gates.md"
    assert rule_tables() in document.read_text(), (
        "run: python -m expectations.gate --list, and put it into docs/gates.md"
    )


def test_events_of_two_days_differ_only_in_time() -> None:
    assert [row["time_ms"] for row in next_day()] == [row["time_ms"] + 86_400_000 for row in valid_events()]
    assert event("x", "click", 0, "x")["action"] == 1
