"""Steps as the trainer takes them: what all ranks know of each, ready for the device, ahead of the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from model.config.environment import reader_threads
from model.config.run import Config, TrainConfig
from model.data.ahead import Ahead, ahead
from model.data.capacity import Capacities
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable
from model.data.steps import Cost, Position, Step, steps_of, tokens_cost
from model.training.step import is_captured

_DEPTH = 2  # steps that wait: one on its way to the device, one behind it


def side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of the calling thread for copies to a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_device(device)  # of this thread, whose page-locked memory is otherwise the first GPU's
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def delivered(step: Step, device: torch.device, stream: torch.cuda.Stream | None) -> Step:
    """A step that is ready, its batch on the way to the device, while the device computes the one before."""
    if stream is None:
        return step
    with torch.cuda.stream(stream):
        batch = step.batch.to(device)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(stream)
    return dataclasses.replace(step, batch=batch, copied=copied)


def capacities_of(config: Config, device: torch.device) -> Capacities | None:
    """Sizes that steps of one rank are padded to; None where the dense part is not captured."""
    if not is_captured(config, device):
        return None
    return Capacities(batch_tokens=config.train.batch_tokens // dist.get_world_size())


def made_ready(
    steps: Iterator[Step], train: TrainConfig, device: torch.device, capacities: Capacities | None
) -> Iterator[Step]:
    """Steps on their way to the device; others are put together, in a thread of their own, meanwhile."""
    stream = side_stream(device)
    for step in ahead(steps, depth=1, name="steps of rows"):
        ready = step.ready(
            train.frozen_share, num_parts=train.accumulate, pin=stream is not None, capacities=capacities
        )
        yield delivered(ready, device, stream)


def with_next(steps: Iterable[Step]) -> Iterator[tuple[Step, Step | None]]:
    """Each step, with the one that follows it."""
    rest = iter(steps)
    step = next(rest, None)
    while step is not None:
        following = next(rest, None)
        yield step, following
        step = following


class Loader:
    """Makes the steps of days, on every rank as many.

    Ranks agree on a step's sums in the thread that makes it, in a group of its own on the CPU: neither the
    device nor the step before is waited for.

    Args:
        encoder: Makes tensors of rows.
        config: Of the run.
        device: For which they are made ready.
    """

    def __init__(self, encoder: SampleEncoder, config: Config, device: torch.device) -> None:
        self._encoder = encoder
        self._config = config
        self._device = device
        self._capacities = capacities_of(config, device)
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None

    def steps(self, table: SamplesTable, ds: str, start: Position | None = None) -> Ahead[Step]:
        """The steps of all passes over a day, from where a rank has come; a context, see `Ahead`."""
        steps = self._of_day(table, ds, start or Position())
        return Ahead(steps, depth=_DEPTH, name=f"loader of {ds}")

    def _of_day(self, table: SamplesTable, ds: str, start: Position) -> Iterator[Step]:
        train = self._config.train
        for pass_number in range(start.pass_number, train.passes):
            of_rank = steps_of(
                table,
                self._encoder,
                ds,
                pass_number=pass_number,
                batch_tokens=train.batch_tokens,
                seed=train.seed,
                rank=dist.get_rank(),
                world_size=dist.get_world_size(),
                start=start if pass_number == start.pass_number else None,
                cost=self._cost(),
                threads=reader_threads(),
            )
            agreed = of_rank if self._group is None else self._agreed(of_rank, ds, start, pass_number)
            yield from made_ready(agreed, train, self._device, self._capacities)

    def _cost(self) -> Cost:
        """What rows cost, in tokens: a block's 10 N d^2 + 4 pairs d over the 10 d^2 of a token."""
        if self._config.train.balance == "tokens":
            return tokens_cost
        pair = 0.4 / self._config.model.d_model
        return lambda batch: tokens_cost(batch) + pair * batch.pairs_B().double()

    def _agreed(self, of_rank: Iterator[Step], ds: str, start: Position, pass_number: int) -> Iterator[Step]:
        """Steps with sums over all ranks, until no rank has rows; one that has none left gets empty steps."""
        position = start if pass_number == start.pass_number else Position(pass_number=pass_number)
        while True:
            step = next(of_rank, None)
            if step is None:
                position = dataclasses.replace(position, number=position.number + 1)
                step = Step(
                    name=f"{ds}/{pass_number}/{position.number - 1}",
                    batch=self._encoder.empty(),
                    num_candidates=0,
                    weight=0.0,
                    num_tokens=0,
                    row_hash=torch.zeros(0),
                    position=position,
                )
            position = step.position
            sums = torch.tensor(
                [step.batch.num_rows, step.num_candidates, step.weight, step.num_tokens], dtype=torch.float64
            )
            dist.all_reduce(sums, group=self._group)
            rows, candidates, weight, tokens = sums.tolist()
            if not rows:
                return
            yield dataclasses.replace(
                step, num_candidates=int(candidates), weight=weight, num_tokens=int(tokens)
            )
