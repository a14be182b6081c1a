"""The load generator counts every request, and an open loop asks whether or not it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.load import Call, Load, at_rate, closed
from benchmarks.serve import _best

CALLS = [Call(path="/right", body=b"1"), Call(path="/wrong", body=b"2")]


def loaded(make: Callable[[str], Awaitable[Load]], pause_s: float = 0.0) -> tuple[Load, int]:
    """A load upon a server that is busy with one request at a time, and how many it has got."""
    number = 0

    async def run() -> Load:
        lock = asyncio.Lock()

        async def answer(request: web.Request) -> web.Response:
            nonlocal number
            number += 1
            async with lock:
                await asyncio.sleep(pause_s)
            return web.Response(status=200 if request.path == "/right" else 418, body=await request.read())

        app = web.Application()
        app.router.add_post("/{path}", answer)
        async with TestServer(app) as server:
            return await make(str(server.make_url("")).rstrip("/"))

    load = asyncio.run(run())
    return load, number


def test_a_closed_loop_counts_what_is_answered_how() -> None:
    load, number = loaded(lambda url: closed(url, CALLS, callers=2, seconds=0.3, keep=True))
    assert sum(load.statuses.values()) == number == len(load.bodies)
    assert set(load.statuses) == {200, 418}
    assert len(load.latencies_ms) == load.statuses[200]
    assert load.summary()["not_answered"] == load.statuses[418]


def test_an_open_loop_does_not_wait_for_answers_and_times_from_when_a_request_was_due() -> None:
    # 40 requests come within a second; the server needs two for them.
    load, number = loaded(lambda url: at_rate(url, CALLS[:1], rate=40, seconds=1, seed=2), pause_s=0.05)
    again, _ = loaded(lambda url: at_rate(url, CALLS[:1], rate=40, seconds=1, seed=2))
    assert number == load.statuses[200] == again.statuses[200] > 25
    assert max(load.latencies_ms) > 0.05 * number * 1000 - 1000  # the last waits for all before it


def test_a_server_that_is_not_there_is_counted() -> None:
    load = asyncio.run(closed("http://127.0.0.1:9", CALLS, callers=1, seconds=0.05))
    assert set(load.statuses) == {0}
    assert load.latencies_ms == []


def test_what_a_side_can_do_is_the_best_number_of_callers_in_the_median_of_the_rounds() -> None:
    lines = [
        {"side": side, "loop": loop, "callers": callers, "requests_per_s": rate}
        for side, loop, callers, rate in (
            ("ours", "closed", 1, 90.0), ("ours", "closed", 1, 10.0), ("ours", "closed", 1, 20.0),
            ("ours", "closed", 4, 30.0), ("ours", "closed", 4, 50.0), ("ours", "closed", 4, 40.0),
            ("ours", "open", 0, 999.0), ("theirs", "closed", 4, 999.0),
        )
    ]  # fmt: skip
    assert _best(lines, "ours") == (40.0, 30.0, 50.0)
    with pytest.raises(ValueError, match="empty"):
        _best(lines, "nobody")
