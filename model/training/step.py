"""The training step, and the state that it needs to go on: model parallel tables, DDP for the rest.

The same code runs as one process on a CPU and under torchrun: tables are sharded row-wise over the ranks and
updated in the backward pass by row-wise Adagrad, dynamic ones likewise; all other weights are replicated and
updated by AdamW or Muon. Each rank gives its own part of the state, and takes up its part of the state of any
number of ranks.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.config.run import Config
from model.data.batch import JaggedBatch
from model.data.steps import Step
from model.embeddings.numbers import NumberScaler
from model.embeddings.rules import RowOptimizer
from model.embeddings.table_state import joined
from model.embeddings.tables import Dispatched
from model.rankers.heads import Heads
from model.rankers.inputs import Embeddings
from model.rankers.protocol import build_ranker
from model.runs.files import RunError
from model.runs.sharded import ShardReader
from model.training.averaging import Average
from model.training.captured import Captured, DensePart, loss_of
from model.training.dense import DenseOptimizer
from model.training.parts import Part, load, parts_of
from model.training.ranks import SMALL_TABLE, Replicas, distributed, shard_fully, unsynced_shards
from model.training.schedule import rate_share
from model.training.watch import Watch
from spark_jobs.contract.clock import parse_day
from spark_jobs.contract.command import CommandError
from spark_jobs.contract.features import Dataset, Group

logger = logging.getLogger(__name__)

_CONSTANTS = "inputs.scaler."  # fitted once, not trained
_DYNAMIC = "inputs.embeddings.dynamic."  # as large as the ids that came
_WEIGHTS = ("weights/", "averaged/")  # in a checkpoint; what is averaged is published so


class OutOfMemoryError(CommandError):
    """A step does not fit into the GPU's memory; the message names what to lower."""


class Trainer:
    """A ranker in training; needs a process group.

    Args:
        dataset: Declares features and tables.
        config: Model and training.
        device: Where to train.

    Attributes:
        group: All ranks, for what is said between their CPUs beside the steps: checkpoints.
    """

    def __init__(self, dataset: Dataset, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        ranker = build_ranker(dataset, config.model, config.train.seed).to(device)
        ranker.recompute = config.train.recompute
        self._ranker = ranker
        self.scaler: NumberScaler = ranker.inputs.scaler
        self.heads: Heads = ranker.heads
        tables = ranker.inputs.embeddings.tables
        self._rows: dict[str, Any] = dict(ranker.inputs.embeddings.dynamic.items())
        for collection in self._rows.values():
            optimizer = RowOptimizer(name="adagrad", lr=config.train.sparse_lr)
            collection.train_rows(optimizer, config.train.keeping(), dist.group.WORLD)
        self._day = ""
        in_tables = {id(parameter) for parameter in tables.parameters()}
        dense = {n: p for n, p in ranker.named_parameters() if id(p) not in in_tables}
        has_others = dist.get_world_size() > 1
        self._is_sharded = has_others and config.train.fully_sharded
        # What is captured is exchanged in one piece behind it; DDP's hooks would wait for other streams.
        self._has_ddp = has_others and not self._is_sharded and not is_captured(config, device)
        self._replicas = Replicas(ranker, config.train.sparse_lr)
        self.model = distributed(ranker, self._replicas, config.train.sparse_lr, device, ddp=self._has_ddp)
        if self._is_sharded:
            shard_fully(ranker, dense, device)
            sharded = dict(ranker.named_parameters())
            dense = {name: sharded[name] for name in dense}
        self.dense_names = sorted(dense)
        self.dense = [dense[name] for name in self.dense_names]
        linear = {id(m.weight) for m in ranker.modules() if isinstance(m, nn.Linear)}
        matrices = {name for name, parameter in dense.items() if id(parameter) in linear}
        self._is_bfloat16 = config.train.precision == "bfloat16"
        self._rate = torch.tensor(config.train.dense_lr, device=device)
        rate = self._rate if is_captured(config, device) else None
        self.optimizer = DenseOptimizer(dense, matrices, config.train, rate)
        whole = [] if self._is_sharded else self.dense
        self._dense_part = DensePart(
            ranker,
            whole,
            is_bfloat16=self._is_bfloat16,
            listwise=config.train.listwise,
            device=device,
        )
        self._forget_captured()
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._dispatched: tuple[str, Dispatched] | None = None
        self.num_steps = 0
        self.num_tokens = 0
        self.group = dist.new_group(backend="gloo")
        self._average = Average([part.tensor for part in self._averaged_parts().values()])
        self._watch = Watch()

    def step(self, step: Step, following: Step | None = None) -> None:
        """Takes one optimizer step; `losses` reads its loss. One process never waits for the device in it.

        Args:
            step: To take.
            following: The step that will be taken next, where it is known: its ids go to the ranks that keep
                their rows while the device computes this one.

        Raises:
            NonFiniteLossError: A loss or gradient of a step before this one is NaN or infinite.
            OutOfMemoryError: It does not fit into the device's memory.
        """
        train = self.config.train
        if not step.batch.layouts:
            step = step.ready(train.frozen_share, num_parts=train.accumulate)
        if step.batch.room is None and dist.get_world_size() > 1 and not (self._has_ddp or self._is_sharded):
            raise ValueError(f"step {step.name} is not padded: the ranks' gradients would not be exchanged")
        if step.batch.room is not None and self._is_sharded:
            raise ValueError(f"step {step.name} is padded: what is fully sharded takes batches as they are")
        self.num_tokens += step.num_tokens
        self._set_rate(train.dense_lr * rate_share(train, self.num_steps, self.num_tokens))
        try:
            if step.batch.room is not None:
                values = self._take_captured(step, following)
            else:
                self.optimizer.zero_grad()
                loss, bad = self._backward(step)
                norm = nn.utils.clip_grad_norm_(self.dense, train.clip_norm)
                norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
                self.optimizer.step()
                values = torch.stack([one.detach().double() for one in (loss, norm, bad)])
            self._replicas.step()
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"step {step.name} (day/pass/step), {step.batch.num_tokens} tokens on this rank, does not "
                f"fit into the memory of {self.device}: lower batch_tokens (of {dist.get_world_size()} ranks "
                f"together {train.batch_tokens}), raise accumulate ({train.accumulate}) or set recompute: "
                f"{error}"
            ) from error
        self.num_steps += 1
        self._average.update(self.num_steps)
        self._watch.add(step, values)

    def _take_captured(self, step: Step, following: Step | None) -> Tensor:
        """Takes a step of a batch that is padded; returns its loss, norm and first bad candidate."""
        batch = self._delivered(step)
        for weight, gradient in zip(self.dense, self._dense_part.gradients, strict=True):
            weight.grad = gradient
        dispatched = self._taken_dispatched(step)
        loss, bad = self._dense_part.backward(
            batch, step.weight, dispatched, lambda: self._dispatch(following)
        )
        self._update.run(self._clip_and_update)
        return torch.stack([loss.double(), self._norm.double(), bad.double()])

    def _taken_dispatched(self, step: Step) -> Dispatched | None:
        """The ids of a step, if they were sent while the one before was computed."""
        if self._dispatched is None:
            return None
        (name, dispatched), self._dispatched = self._dispatched, None
        if name != step.name:
            raise ValueError(f"step {step.name} comes where {name} was said to follow")
        if self._side is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self._side)
            dispatched.record_stream(stream)
        return dispatched

    def _dispatch(self, following: Step | None) -> None:
        """Sends the next step's ids to the ranks that keep their rows, beside what the device computes."""
        if following is None or dist.get_world_size() == 1:
            return
        embeddings = self._ranker.inputs.embeddings
        if self._side is None:
            self._dispatched = following.name, embeddings.dispatch(following.batch)
            return
        with torch.cuda.stream(self._side):
            assert following.copied is not None
            self._side.wait_event(following.copied)
            self._dispatched = following.name, embeddings.dispatch(following.batch)

    def _clip_and_update(self) -> None:
        """`clip_grad_norm_` and Adam, on the gradients' fixed memory."""
        gradient = self._dense_part.gradient
        norm = torch.linalg.vector_norm(gradient)
        gradient.mul_((self.config.train.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        self._norm = norm

    def _forget_captured(self) -> None:
        """Has the optimizer's work captured anew: its state lies elsewhere."""
        pool = self._dense_part.pool if self.optimizer.is_capturable else None
        self._update = Captured(pool)

    def _set_rate(self, rate: float) -> None:
        self._rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate if self.optimizer.is_capturable else rate

    def _delivered(self, step: Step) -> JaggedBatch:
        """The step's batch on the device, which waits for the copy."""
        batch = step.batch.to(self.device)
        if step.copied is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(step.copied)
            batch.record_stream(stream)
        return batch

    def _backward(self, step: Step) -> tuple[Tensor, Tensor]:
        """Adds up the gradients of a step's parts; updates the rows of the tables, once.

        Returns:
            This rank's part of the loss, and its first candidate whose loss is not finite, or -1.
        """
        batch = self._delivered(step)
        parts = batch.parts()
        if len(parts) == 1:
            return self._backward_part(batch, None, step.weight)
        # The ids of all parts are looked up at once, and the parts' gradients go back through this lookup
        # together: rows are read, and updated, as for one big batch.
        embedded = self._ranker.inputs.embeddings(batch)
        loss = torch.zeros((), device=self.device)
        bad_of_all = torch.full((), -1, dtype=torch.int64, device=self.device)
        grads: dict[Group, list[list[Tensor]]] = {
            group: [[] for _ in some] for group, some in embedded.items()
        }
        for number, part in enumerate(parts):
            (where,) = part.layouts
            own = {
                group: [one[slice(*where.places[group])].detach().requires_grad_() for one in some]
                for group, some in embedded.items()
            }
            with contextlib.nullcontext() if number == len(parts) - 1 else self._unsynced():
                of_part, bad = self._backward_part(part, own, step.weight)
            loss = loss + of_part
            bad = torch.where(bad >= 0, bad + where.places[Group.CANDIDATE][0], -1)
            bad_of_all = torch.where(bad_of_all >= 0, bad_of_all, bad)
            for group, some in own.items():
                for place, one in enumerate(some):
                    grads[group][place].append(torch.zeros_like(one) if one.grad is None else one.grad)
        torch.autograd.backward(
            [one for some in embedded.values() for one in some],
            [torch.cat(of_parts) for some in grads.values() for of_parts in some],
        )
        return loss, bad_of_all

    def _backward_part(
        self, part: JaggedBatch, embeddings: Embeddings | None, weight: float
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_bfloat16):
            logits = self.model(part, embeddings)
        loss, bad = loss_of(logits, part, weight, self.config.train.listwise)
        # Both DDP and the row-wise exchange divide gradients by the number of ranks.
        (loss * dist.get_world_size()).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), bad

    def _unsynced(self) -> contextlib.AbstractContextManager[None]:
        """Within it gradients of the dense part are added up, and not yet exchanged."""
        if dist.get_world_size() == 1:
            return contextlib.nullcontext()
        if self._is_sharded:
            return unsynced_shards(self._ranker)
        unsynced: contextlib.AbstractContextManager[None] = self.model._dmp_wrapped_module.no_sync()
        return unsynced

    def begin_day(self, day: str) -> None:
        """Says of what day of data the next steps are; once a day, rows that are too old go."""
        if day == self._day:
            return
        self._day = day
        for collection in self._rows.values():
            collection.start_day(parse_day(day).toordinal())

    @property
    def num_fresh(self) -> int:
        """Steps of batches that were padded whose dense part was not replayed."""
        return self._dense_part.num_fresh

    @property
    def num_pending(self) -> int:
        """Steps whose losses have not been handed out."""
        return len(self._watch)

    def losses(self) -> list[tuple[str, float]]:
        """(step, loss over all ranks) of the steps since the last call; waits for the device.

        Raises:
            NonFiniteLossError: A loss or gradient norm is NaN or infinite.
        """
        return self._watch.losses()

    def published(self, reader: ShardReader) -> dict[str, Tensor]:
        """The model to publish of a checkpoint: its weights, averaged over the last steps; see `averaging`.

        Whole, on the CPU, from the files of all ranks: nothing is asked of other ranks.
        """
        published = {
            name.removeprefix(kind): reader.tensor(name) for kind in _WEIGHTS for name in reader.names(kind)
        }
        for width, collection in self._rows.items():
            states = [
                {name: reader.tensor(f"rows/{width}/{rank}/{name}") for name in ("ids", "tables", "vectors")}
                for rank in range(reader.num_ranks)
            ]
            whole = collection.published(joined(states))
            published |= {f"{_DYNAMIC}{width}.{name}": part for name, part in whole.items()}
        return published

    def _averaged_parts(self) -> dict[str, Part]:
        """What is averaged over steps: weights outside the tables, and this rank's part of small tables."""
        own = {
            name: tensor
            for name, tensor in _fixed(self.model.state_dict()).items()
            if not name.startswith(_CONSTANTS)
            and (not hasattr(tensor, "local_shards") or tensor.size().numel() <= SMALL_TABLE)
        }
        return parts_of(own)

    def _parts(self) -> dict[str, Part]:
        """This rank's parts, as they are in use, of all whose shape the config gives."""
        parts = {f"weights/{name}": part for name, part in parts_of(_fixed(self.model.state_dict())).items()}
        averaged = zip(self._averaged_parts().items(), self._average.averaged, strict=True)
        parts |= {f"averaged/{name}": replace(part, tensor=tensor) for (name, part), tensor in averaged}
        sums = self.model.fused_optimizer.state_dict()["state"] | self._replicas.state
        for table, state in sums.items():
            parts |= {f"sparse/{table}/{name}": part for name, part in parts_of(state).items()}
        return parts

    def state(self) -> dict[str, Part]:
        """All that this rank needs to go on: a copy, on the CPU, of its own part.

        Names begin with `weights/`, `averaged/` (of those that are averaged), `sparse/` and `dense/`
        (optimizer states), `rows/` (dynamic tables, by width and rank) and `random/`.
        """
        parts = self._parts()
        for name, parameter in zip(self.dense_names, self.dense, strict=True):
            state = self.optimizer.state.get(parameter, {})
            parts |= {f"dense/{name}/{key}": part for key, part in parts_of(state).items()}
        state = {name: part.copied() for name, part in parts.items()}
        own: dict[str, Tensor] = {"num_steps": torch.tensor(self.num_steps)}
        own["num_tokens"] = torch.tensor(self.num_tokens)
        for width, collection in self._rows.items():
            rows = collection.state().items()
            own |= {f"rows/{width}/{dist.get_rank()}/{name}": tensor for name, tensor in rows}
        own |= {f"random/{dist.get_rank()}/{kind}": rng for kind, rng in _random_state(self.device).items()}
        return state | {name: Part.whole(tensor) for name, tensor in own.items()}

    def load(self, reader: ShardReader) -> None:
        """Takes up a checkpoint, of any number of ranks; every rank must call it.

        Raises:
            RunError: It is of another model, or damaged.
        """
        own = {f"weights/{name}" for name in _fixed(self.model.state_dict())}
        rows = {name.split("/")[1] for name in reader.names("rows/")}
        if own != set(reader.names("weights/")) or rows != self._rows.keys():
            raise RunError(
                f"{reader.path} has other weights than this model; it is of another config or dataset"
            )
        parts = self._parts()
        for name, parameter in zip(self.dense_names, self.dense, strict=True):
            kept = {saved.rpartition("/")[2]: saved for saved in reader.names(f"dense/{name}/")}
            if kept and kept.keys() != self.optimizer.kept[name]:
                logger.warning("%s has another optimizer now, which begins anew", name)
            elif kept:
                state = {
                    key: torch.zeros_like(parameter.detach())
                    if reader.shape(saved) == parameter.shape
                    else torch.zeros(reader.shape(saved), device=self.device)
                    for key, saved in kept.items()
                }
                parts |= parts_of({kept[key]: value for key, value in state.items()})
                self.optimizer.state[parameter] = state
        load(reader, parts, self.group)
        for width, collection in self._rows.items():
            collection.load_states(
                {
                    name.rpartition("/")[2]: reader.tensor(name)
                    for name in reader.names(f"rows/{width}/{rank}/")
                }
                for rank in collection.sources(reader.num_ranks)
            )
        if reader.num_ranks == dist.get_world_size():
            _set_random_state(self.device, reader)
        self._forget_captured()
        self._dispatched = None
        self.num_steps = int(reader.tensor("num_steps"))
        self.num_tokens = int(reader.tensor("num_tokens"))


def _random_state(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _set_random_state(device: torch.device, reader: ShardReader) -> None:
    of_rank = f"random/{dist.get_rank()}/"
    torch.set_rng_state(reader.tensor(of_rank + "cpu"))
    if device.type == "cuda" and of_rank + "cuda" in reader.names(of_rank):
        torch.cuda.set_rng_state(reader.tensor(of_rank + "cuda"), device)


def is_captured(config: Config, device: torch.device) -> bool:
    """Whether steps on `device` are padded and the dense part is captured; see `captured`."""
    train = config.train
    is_sharded = train.fully_sharded and dist.get_world_size() > 1
    is_asked = train.cuda_graphs and train.accumulate == 1 and not is_sharded
    return is_asked and config.model.takes_padded and device.type == "cuda"


def _fixed(weights: dict[str, Any]) -> dict[str, Any]:
    """The weights whose shapes the config gives."""
    return {name: part for name, part in weights.items() if not name.startswith(_DYNAMIC)}
