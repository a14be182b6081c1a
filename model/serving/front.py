"""What stands before Triton: requests in JSON, limits, deadlines, and an answer of 4xx to what is not right.

| path | takes | answers |
|---|---|---|
| `POST /score`, `/score/shadow` | a row as JSON; with `time_ms`, what lookups do not have | `{"ctr": [...], "ctcvr": [...], "version": 4}` |
| `POST /v2/models/<model>/infer` | the three tensors, binary | `scores` float32 `[1, 2, C]` and `version`, binary |
| `POST /events` | `{"events": [...]}`, what users have done today, see `today` | `{"events": 3}`, how many are held |
| `GET /v2/health/live`, `/v2/health/ready` | | 200, or 503 |
| `GET /metrics` | | Triton's metrics and these, for Prometheus |

Triton alone cannot do it: a body of 300 MB of zeros ends its process, JSON that does not parse is answered 500,
and it has no JSON for people. Requests wait here, not there, and go to it in batches (`batching`). One that
waits too long is answered 504; while `max_waiting` are under way more are answered 429. `Deadline-Ms` says how
long the caller waits. With a mirror, the shadow gets each request of the champion's, too; nobody waits for it.
"""  # noqa: E501 - a table

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web

from model.data.stored import Array
from model.runs.files import RunError
from model.serving import kserve
from model.serving.answers import Answers
from model.serving.batching import Batcher
from model.serving.lookups import Lookups
from model.serving.request import ROW, RequestError, RequestForm, json_object
from model.serving.today import FullError, Today
from model.serving.triton_client import TritonClient

logger = logging.getLogger(__name__)

DEADLINE_HEADER = "Deadline-Ms"
_Tensors = Mapping[str, Array]
_Scored = tuple[Array, int]  # float32 [2, C], and the version


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a front lets pass.

    Args:
        max_body: Bytes of a body.
        max_waiting: Requests under way.
        deadline_ms: How long a request may take, unless it says less.
        calls: Batches under way at a time for each model.
        max_batch: Requests of a batch.
        batch_tokens: Tokens of a batch.
        is_mirrored: Whether the shadow scores what the champion is asked.
        today_events: Events of today that are held; 0: none, a request brings its day itself.
    """

    max_body: int = 4 << 20
    max_waiting: int = 256
    deadline_ms: int = 1000
    calls: int = 1
    max_batch: int = 32
    batch_tokens: int = 20_000
    is_mirrored: bool = False
    today_events: int = 0


class Front:
    """The HTTP server before Triton.

    Args:
        form: What requests look like.
        triton: Triton's URL.
        metrics: URL of its metrics.
        models: By path behind `/score`, the name of the model.
        limits: What passes.
        lookups: Link to the store of what requests need not carry.

    Attributes:
        form: As given.
        models: Names of the models.
        answers: How was answered.
    """

    def __init__(
        self,
        form: RequestForm,
        triton: str,
        metrics: str,
        models: dict[str, str],
        limits: Limits,
        lookups: Path,
    ) -> None:
        self.form, self._triton = form, TritonClient(triton, metrics)
        self._models, self._limits = models, limits
        self.models = tuple(models.values())
        self._lookups_link, self._lookups_file = lookups, lookups
        self._lookups: Lookups | None = None
        self._today = Today(form.dataset, limits.today_events) if limits.today_events else None
        self._batchers = {
            name: Batcher[_Tensors, _Scored](
                functools.partial(self._send, name),
                calls=limits.calls,
                max_requests=limits.max_batch,
                max_tokens=limits.batch_tokens,
            )
            for name in models.values()
        }
        self._mirrored: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self.answers = Answers()

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(client_max_size=self._limits.max_body, middlewares=[self._guarded])
        app.router.add_post("/score", self._score)
        app.router.add_post("/score/{role}", self._score)
        app.router.add_post("/events", self._events)
        app.router.add_post("/v2/models/{model}/infer", self._infer)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_get("/v2/health/ready", self._ready)
        app.router.add_get("/metrics", self._show_metrics)
        app.cleanup_ctx.append(self._connected)
        return app

    async def _connected(self, app: web.Application) -> Any:
        async with self._triton:
            yield

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Counts, bounds and times what is asked, and turns errors into answers."""
        if request.method != "POST":
            return await handler(request)
        name, start = request.path, time.perf_counter()
        try:
            if self._waiting >= self._limits.max_waiting:
                raise web.HTTPTooManyRequests(
                    text=f"{self._waiting} requests are under way; try again", headers={"Retry-After": "1"}
                )
            self._waiting += 1
            try:
                async with asyncio.timeout(self._deadline_ms(request) / 1000):
                    response = await handler(request)
            finally:
                self._waiting -= 1
        except (RequestError, kserve.ProtocolError) as error:
            response = _told(400, str(error))
        except FullError as error:
            response = _told(429, str(error))
        except TimeoutError:
            response = _told(504, f"no answer within {DEADLINE_HEADER} {self._deadline_ms(request)}")
        except aiohttp.ClientError as error:
            logger.warning("Triton does not answer: %s", error)
            response = _told(503, "the model is not ready; try again")
        except RunError as error:
            logger.error("%s", error)
            response = _told(503, "the lookups cannot be read; try again")
        except web.HTTPException as error:
            response = _told(error.status, error.text or error.reason, dict(error.headers))
        name = name if response.status != 404 else "other"
        self.answers.count(name, response.status, time.perf_counter() - start)
        return response

    def _deadline_ms(self, request: web.Request) -> int:
        text = request.headers.get(DEADLINE_HEADER, str(self._limits.deadline_ms))
        if not text.isdecimal() or not 0 < int(text[:10]) <= 60_000:
            raise RequestError(f"header {DEADLINE_HEADER} is {text[:40]!r}; it is milliseconds, 1 to 60000")
        return min(int(text), self._limits.deadline_ms)

    async def _score(self, request: web.Request) -> web.Response:
        role = request.match_info.get("role", "")
        if role not in self._models:
            raise web.HTTPNotFound(text=f"there is no model {role!r}; ask {', '.join(self._paths())}")
        row = json_object(await request.read())
        if "time_ms" in row:
            row = self._published().complete(row, self._today)
        tensors = self.form.tensors_of(self.form.of_row(row))
        scores, version = await self.asked(self._models[role], tensors)
        return web.json_response({"ctr": scores[0].tolist(), "ctcvr": scores[1].tolist(), "version": version})

    async def _events(self, request: web.Request) -> web.Response:
        if self._today is None:
            raise web.HTTPNotFound(text="no events are held here: start the server with --today-events")
        events = json_object(await request.read()).get("events")
        if not isinstance(events, list):
            raise RequestError("column events must be a list")
        day = self._published().day
        for place, event in enumerate(events):
            try:
                self._today.add(event, day)
            except RequestError as error:
                raise RequestError(f"events[{place}]: {error}") from error
        return web.json_response({"events": len(self._today)})

    def _published(self) -> Lookups:
        """The lookups that are published now."""
        file = self._lookups_link.resolve()
        if self._lookups is None or file != self._lookups_file:
            if not self._lookups_link.is_symlink():
                raise web.HTTPServiceUnavailable(
                    text="no lookups are published: send a whole row, no time_ms"
                )
            before, self._lookups = self._lookups, Lookups(self.form.dataset, file)
            self._lookups_file = file
            if before is not None:
                before.close()
        return self._lookups

    def _paths(self) -> list[str]:
        return ["/score" + (f"/{role}" if role else "") for role in self._models]

    async def _infer(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name not in self.models:
            raise web.HTTPNotFound(text=f"there is no model {name!r}; use {', '.join(self.models)}")
        tensors, _ = kserve.decode(await request.read(), request.headers.get(kserve.LENGTH_HEADER))
        self.form.check(tensors)  # before it takes a place in a batch
        scores, version = await self.asked(name, tensors)
        answer = {"scores": scores[None], "version": np.array([[version]])}
        body, length = kserve.encode(answer, "outputs", model_name=name, model_version="1")
        return web.Response(
            body=body,
            content_type="application/octet-stream",
            headers={kserve.LENGTH_HEADER: str(length)},
        )

    async def asked(self, model: str, tensors: _Tensors) -> _Scored:
        """Scores of a request, float32 `[2, C]`, and the version that they are of."""
        tokens, shadow = self.form.num_tokens(tensors), self._models.get("shadow")
        if self._limits.is_mirrored and shadow is not None and model != shadow:
            batcher = self._batchers[shadow]
            if batcher.num_waiting < self._limits.max_waiting:  # else this one is left out
                task = asyncio.create_task(self._mirror(batcher, tensors, tokens))
                self._mirrored.add(task)
                task.add_done_callback(self._mirrored.discard)
        return await self._batchers[model].ask(tensors, tokens)

    async def _mirror(self, batcher: Batcher[_Tensors, _Scored], tensors: _Tensors, tokens: int) -> None:
        """Lets the shadow score a request, which its log notes."""
        try:
            async with asyncio.timeout(self._limits.deadline_ms / 1000):
                await batcher.ask(tensors, tokens)
            code = 200
        except TimeoutError:
            code = 504
        except (web.HTTPException, aiohttp.ClientError) as error:
            logger.warning("the shadow does not score: %s", error)
            code = 503
        self.answers.count("mirror", code)

    async def _send(self, model: str, requests: Sequence[_Tensors]) -> Sequence[_Scored | Exception]:
        """Triton's scores of a batch; where it refuses one of several, each is asked by itself."""
        try:
            longest_s = self._limits.deadline_ms / 1000  # nobody waits any longer
            scores, version = await self._triton.infer(model, self.form.joined(requests), longest_s)
        except web.HTTPBadRequest as error:
            if len(requests) == 1:
                return [error]
            return [answer for one in requests for answer in await self._send(model, [one])]
        counts = [int(one[ROW].reshape(-1)[-1]) for one in requests]
        parts = np.split(scores, np.cumsum(counts)[:-1], axis=1)
        return [(part, version) for part in parts]

    async def _live(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if await self.is_ready() else 503)

    async def is_ready(self) -> bool:
        """Whether the champion can be asked."""
        return await self._triton.is_ready(self._models[""])

    async def _show_metrics(self, request: web.Request) -> web.Response:
        lines = [
            *self.answers.lines(),
            "# TYPE mtgr_waiting gauge",
            f"mtgr_waiting {self._waiting}",
            "# TYPE mtgr_events_today gauge",
            f"mtgr_events_today {0 if self._today is None else len(self._today)}",
            "# TYPE mtgr_batches_total counter",
            *(f'mtgr_batches_total{{model="{name}"}} {b.batches}' for name, b in self._batchers.items()),
        ]
        return web.Response(text=await self._triton.metrics() + "\n".join(lines) + "\n")


def _told(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    kept = {name: value for name, value in (headers or {}).items() if name in ("Retry-After", "Allow")}
    return web.json_response({"error": message}, status=status, headers=kept)
