"""A day of requests, each with what it alone knows, scores through the server as evaluation scored it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from model import publish
from model.judging.scoring import Scorer
from model.serving import roles
from model.serving.golden import requests_of
from model.serving.lookups import Lookups
from model.serving.today import Today
from spark_jobs import build_lookups, build_samples, ingest, simulate
from spark_jobs.contract import locations
from spark_jobs.contract.clock import CLOCK_FEATURES
from spark_jobs.contract.features import Group, Owner
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts
from tests.model.packages import make_package
from tests.model.test_server import Serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
DS = DAYS[-1]
NOT_READ = ("ds", "window_end_ms", "candidate_time_ms", "candidate_request_id", "candidate_impression_id")


@pytest.fixture(scope="module")
def day(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pa.Table]:
    """The samples of a small third day, whose lookups are published."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MTGR_VAR", str(tmp_path_factory.mktemp("replay") / "var"))
    patch.delenv("MTGR_LAKE", raising=False)
    of = ["--dataset", "foodlog"]
    size = ["--users", "80", "--impressions-a-day", "1500"]
    assert simulate.main([*of, "--from", DAYS[0], "--to", DS, *size]) == 0
    for ds in DAYS:
        assert ingest.main([*of, "--ds", ds]) == 0
        verdicts.allow("foodlog", "events", [ds], "a test")
    assert build_samples.main([*of, "--ds", DS]) == 0
    assert build_lookups.main([*of, "--ds", DS]) == 0
    assert publish.main([*of, "--lookups", DS]) == 0
    table = locations.table("foodlog", "samples")
    yield DeltaTable(table).to_pyarrow_table(filters=[("ds", "=", DS)])
    patch.undo()


def asked(row: dict[str, Any], *, has_day: bool) -> dict[str, Any]:
    """What a caller knows of a request: user, time, items, context, and maybe the user's day so far."""
    context = [f"candidate_{f.name}" for f in FOODLOG.of(Owner.CONTEXT) if f.name not in CLOCK_FEATURES]
    kept = ["user_id", "candidate_item_id", *context]
    if has_day:
        kept += [f"candidate_{f.name}" for f in FOODLOG.of(Owner.REALTIME_STATISTIC)]
        kept += [*(f"realtime_{f.name}" for f in FOODLOG.in_group(Group.REALTIME)), "realtime_time_ms"]
    return {"time_ms": row["candidate_time_ms"][0], **{name: row[name] for name in kept}}


def events_of_today() -> list[dict[str, Any]]:
    """What happened on the day and was known by its end, as it is posted: impressions from their request."""
    table = DeltaTable(locations.table("foodlog", "events"))
    rows = table.to_pyarrow_table(filters=[("ds", "=", DS), ("delivery_ds", "<=", DS)]).to_pylist()
    shown = Counter((row["user_id"], row["event_type"] == "impression") for row in rows)
    bots = {user for (user, _), number in shown.items() if number > FOODLOG.max_impressions_a_day}
    rows = [row for row in rows if row["user_id"] not in bots]  # of whom there are no samples
    began: dict[Any, int] = {}
    for row in rows:
        if row["event_type"] == "impression":
            key = row["user_id"], row["request_id"]
            began[key] = min(began.get(key, row["time_ms"]), row["time_ms"])
    events = []
    for row in rows:
        context = {f.name: row[f.name] for f in FOODLOG.of(Owner.CONTEXT) if f.name not in CLOCK_FEATURES}
        event = {name: row[name] for name in ("event_id", "event_type", "user_id", "item_id", "time_ms")}
        event["action"] = None if row["action"] is None else FOODLOG.actions[row["action"] - 1]
        if row["event_type"] == "impression":
            event["time_ms"] = began[row["user_id"], row["request_id"]]
        events.append({**event, **context})
    return events


def requests(day: pa.Table) -> list[dict[str, Any]]:
    """Requests of each user's first window: what began later has moved into the static sequence."""
    rows, _ = requests_of(day)
    start = FOODLOG.day_start_ms(DS)
    return [row for row in rows.to_pylist() if row["window_start_ms"] == start]


def test_what_is_looked_up_is_what_samples_say(day: pa.Table) -> None:
    lookups = Lookups(FOODLOG, roles.link("foodlog", "lookups"))
    assert lookups.day == DS
    rows = requests(day)
    assert len(rows) > 100
    assert any(row["static_item_id"] for row in rows)
    today = Today(FOODLOG, most=100_000)
    for event in events_of_today():
        today.add(event, DS)
    for row in rows:
        for has_day in (True, False):
            completed = lookups.complete(asked(row, has_day=has_day), today)
            for name, value in row.items():
                if name not in NOT_READ and not name.startswith("label_"):
                    assert completed[name] == value, (name, has_day)


@pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="nvidia-pytriton is not installed")
def test_a_replayed_day_scores_through_the_server_as_evaluation_scored_it(
    day: pa.Table, tmp_path: Path
) -> None:
    package = make_package(FOODLOG, 1, windows=day.slice(0, 20))
    roles.point("foodlog", roles.CURRENT, 1)
    scores = Scorer(package.dataset, package.config, package.ranker()).score(day)
    rows, places = requests_of(day)
    counts = np.diff(rows.column("candidate_visible").combine_chunks().offsets.to_numpy())
    ends = counts.cumsum()
    server = Serving(tmp_path / "serve.log", "--instances", "1", "--today-events", "100000")
    events = events_of_today()
    for first in range(0, len(events), 1000):
        status, answer = server.ask({"events": events[first : first + 1000]}, "/events")
        assert status == 200, answer
    start = FOODLOG.day_start_ms(DS)
    worst, number = 0.0, 0
    for row, end, count in zip(rows.to_pylist(), ends, counts, strict=True):
        has_day = number % 2 == 0  # every other request leaves its day to the log
        if has_day and row["window_start_ms"] != start:
            continue
        status, answer = server.ask(asked(row, has_day=has_day))
        assert status == 200, answer
        of_request = places[end - count : end]
        for task in ("ctr", "ctcvr"):
            worst = max(worst, np.abs(answer[task] - scores[f"{task}_live"][of_request]).max())
        number += 1
    server.stop()
    assert number > 100
    assert worst <= 1e-5
