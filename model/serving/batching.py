"""Batches of what waits while others compute, within a budget of tokens.

    batcher = Batcher(send, calls=2, max_requests=32, max_tokens=20_000)
    answer = await batcher.ask(request, tokens)

So many calls are under way at a time, one a process that computes. Whoever comes while all are busy waits,
and the next call takes all that wait, first come first, within the budget: an idle machine answers at once, a
busy one by large batches, and nobody waits for a batch to fill. Who has given up meanwhile, over its deadline
or gone, is left out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")
Send = Callable[[Sequence[_Request]], Awaitable[Sequence[_Answer | Exception]]]


@dataclass(kw_only=True, eq=False)
class _Waiting(Generic[_Request, _Answer]):
    request: _Request
    tokens: int
    answer: asyncio.Future[_Answer] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher(Generic[_Request, _Answer]):
    """Requests of one model.

    Args:
        send: Computes a batch: an answer, or an exception, for each of its requests.
        calls: Batches under way at a time.
        max_requests: Of a batch.
        max_tokens: Of a batch of more than one request.

    Attributes:
        batches: How many were sent.
    """

    def __init__(
        self, send: Send[_Request, _Answer], *, calls: int, max_requests: int, max_tokens: int
    ) -> None:
        self._send, self._free = send, calls
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self._queue: deque[_Waiting[_Request, _Answer]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.batches = 0

    @property
    def num_waiting(self) -> int:
        """Requests that are not under way yet."""
        return len(self._queue)

    async def ask(self, request: _Request, tokens: int) -> _Answer:
        """The answer to a request.

        Raises:
            Exception: What `send` gave for it, or raised.
        """
        waiting: _Waiting[_Request, _Answer] = _Waiting(request=request, tokens=tokens)
        self._queue.append(waiting)
        self._start()
        return await waiting.answer

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[_Waiting[_Request, _Answer]]:
        batch: list[_Waiting[_Request, _Answer]] = []
        tokens = 0
        while self._queue and len(batch) < self._max_requests:
            if not self._queue[0].answer.done():
                tokens += self._queue[0].tokens
                if batch and tokens > self._max_tokens:
                    break
                batch.append(self._queue.popleft())
            else:
                self._queue.popleft()
        return batch

    async def _run(self, batch: list[_Waiting[_Request, _Answer]]) -> None:
        self.batches += 1
        answers: Sequence[_Answer | Exception]
        try:
            answers = await self._send([one.request for one in batch])
        except Exception as error:  # whatever it is, it is told to those who wait
            answers = [error] * len(batch)
        finally:
            self._free += 1
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, Exception):
                one.answer.set_exception(answer)
            else:
                one.answer.set_result(answer)
        self._start()
