"""What waits goes together, in its order and within its budget, and nobody waits for a batch to fill."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.serving.batching import Batcher


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    calls=st.integers(1, 3),
    max_requests=st.integers(1, 6),
    max_tokens=st.integers(1, 15),
    given_up=st.sets(st.integers(0, 29)),
)
def test_every_request_is_answered_once_within_the_budget(
    sizes: list[int], calls: int, max_requests: int, max_tokens: int, given_up: set[int]
) -> None:
    batches: list[list[int]] = []

    async def run() -> None:
        under_way = 0

        async def send(requests: Sequence[int]) -> list[int]:
            nonlocal under_way
            under_way += 1
            assert under_way <= calls
            batches.append(list(requests))
            await asyncio.sleep(0)
            under_way -= 1
            return [-number for number in requests]

        batcher = Batcher[int, int](send, calls=calls, max_requests=max_requests, max_tokens=max_tokens)
        tasks = [asyncio.create_task(batcher.ask(number, size)) for number, size in enumerate(sizes)]
        await asyncio.sleep(0)  # all have come; the first batches, of one each, are not sent yet
        gone = {number for number in given_up if calls <= number < len(sizes)}
        for number in gone:
            tasks[number].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for number, answer in enumerate(answers):
            if number in gone:
                assert isinstance(answer, asyncio.CancelledError)
            else:
                assert answer == -number
        assert [number for batch in batches for number in batch] == [
            number for number in range(len(sizes)) if number not in gone
        ]
        assert batcher.num_waiting == 0
        assert batcher.batches == len(batches)

    asyncio.run(run())
    for batch in batches:
        assert len(batch) <= max_requests
        assert len(batch) == 1 or sum(sizes[number] for number in batch) <= max_tokens
    assert all(len(batch) == 1 for batch in batches[: min(calls, len(sizes))])  # who comes to an idle one


def test_an_error_is_told_to_whom_it_is_of_and_the_next_are_computed() -> None:
    async def run() -> None:
        async def send(requests: Sequence[int]) -> list[int | Exception]:
            await asyncio.sleep(0.01)
            if 7 in requests:
                raise OSError("gone")
            return [ValueError("odd") if number % 2 else number for number in requests]

        batcher = Batcher[int, int](send, calls=1, max_requests=2, max_tokens=99)
        asked = [batcher.ask(number, 1) for number in (7, 2, 3, 4)]
        first, second, third, fourth = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, OSError)
        assert (second, fourth) == (2, 4)
        assert isinstance(third, ValueError)
        with pytest.raises(ValueError, match="odd"):
            await batcher.ask(5, 1)

    asyncio.run(run())
