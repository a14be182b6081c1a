"""A load generator: requests to an HTTP server, in a closed loop or at times of their own.

*Closed*: so many callers, each asks again once it is answered; what a server can do at most. *Open*: requests
come by a Poisson process whether or not others are answered, and each is timed from when it was due: a server
that stalls cannot hide it (coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request: its path, body and headers."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Load:
    """What came back.

    Attributes:
        seconds: How long requests were sent.
        latencies_ms: Of every request that was answered 200.
        statuses: How many were answered how; 0: the connection broke.
        bodies: Bodies of the answers, where they are kept.
    """

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    bodies: list[bytes] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Requests a second and latencies."""
        latencies = self.latencies_ms or [float("nan")]
        p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
        return {
            "requests_per_s": round(len(self.latencies_ms) / self.seconds, 1),
            "p50_ms": round(float(p50), 2),
            "p95_ms": round(float(p95), 2),
            "p99_ms": round(float(p99), 2),
            "not_answered": sum(n for status, n in self.statuses.items() if status != 200),
        }


async def closed(url: str, calls: Sequence[Call], callers: int, seconds: float, keep: bool = False) -> Load:
    """Load by so many callers.

    Args:
        url: Of the server.
        calls: Asked in turn.
        callers: How many ask side by side.
        seconds: For how long.
        keep: Whether answers are kept.
    """
    load = Load(seconds=seconds)
    end = time.perf_counter() + seconds

    async def caller(session: aiohttp.ClientSession, first: int) -> None:
        place = first
        while (start := time.perf_counter()) < end:
            await _ask(session, url, calls[place % len(calls)], start, load, keep)
            place += callers

    async with _session() as session:
        await asyncio.gather(*(caller(session, first) for first in range(callers)))
    return load


async def at_rate(
    url: str, calls: Sequence[Call], rate: float, seconds: float, seed: int = 1, keep: bool = False
) -> Load:
    """Load by a Poisson process of `rate` requests a second; arguments as of `closed`."""
    load = Load(seconds=seconds)
    due = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.5) + 10).cumsum()
    begin = time.perf_counter()
    tasks = []
    async with _session() as session:
        for place, at in enumerate(due[due < seconds]):
            await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
            tasks.append(
                asyncio.create_task(_ask(session, url, calls[place % len(calls)], begin + at, load, keep))
            )
        await asyncio.gather(*tasks)
    return load


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
    )


async def _ask(
    session: aiohttp.ClientSession, url: str, call: Call, start: float, load: Load, keep: bool
) -> None:
    try:
        async with session.post(url + call.path, data=call.body, headers=call.headers) as response:
            body = await response.read()
    except aiohttp.ClientError:
        load.statuses[0] += 1
        return
    load.statuses[response.status] += 1
    if response.status == 200:
        load.latencies_ms.append((time.perf_counter() - start) * 1000)
    if keep:
        load.bodies.append(body)
