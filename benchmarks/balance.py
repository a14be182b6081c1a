"""How long ranks wait for the slowest: batches of equal users, of equal tokens, of equal work.

    python -m benchmarks.balance --out FILE

Straggler idle is the share of all ranks' time that they spend waiting for the slowest of each step: the sum
over steps of (slowest - mean) over that of the slowest. *Simulated* at 8 ranks: a step costs what the blocks
of MTGR large compute for its rows, 10 N d^2 + 4 pairs d. *Measured* on 4 gloo ranks of this machine: the time
on a core of the thread that trains, which does not count while it waits, so that ranks may share cores; a
model of two blocks, d 256. Lengths are those of shape P and numpy's zipf(1.2) (`benchmarks/rows.py`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.rows import ZIPF, P, Shape, batch_of, lengths_of
from model.config.presets import preset_named
from model.config.run import Config
from model.data.batch import JaggedBatch, nearest_cut
from model.data.steps import Step
from model.rankers.mtgr import MtgrConfig
from model.training.step import Trainer
from spark_jobs.contract import command
from spark_jobs.contract.features import Group
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake.log import git_sha

CUTS = ("users", "tokens", "flops")
_RANKS, _SIMULATED = 4, 8
_USERS = 96  # of a rank, as in the paper
_SHAPES: dict[str, Shape] = {"P": P, "zipf": ZIPF}
_PROFILE = len(FOODLOG.in_group(Group.PROFILE))


def work_of(tokens: npt.NDArray[Any], pairs: npt.NDArray[Any], d_model: int) -> npt.NDArray[np.float64]:
    """What a block computes for rows, in tokens' worth of its products."""
    work: npt.NDArray[np.float64] = tokens + 0.4 / d_model * pairs
    return work


def runs_of(costs: npt.NDArray[Any], target: float) -> Iterator[slice]:
    """Runs of rows whose cost is nearest the target; what does not fill a run is left out."""
    ends, first = costs.cumsum().astype(np.float64), 0
    while first < len(costs) and ends[-1] - (ends[first - 1] if first else 0) >= target:
        size = nearest_cut(ends, target, first)
        yield slice(first, first + size)
        first += size


def idle(seconds: npt.NDArray[Any]) -> float:
    """Share of the ranks' time spent waiting, of a time for each rank and step `[ranks, steps]`."""
    slowest = seconds.max(0)
    return float((slowest - seconds.mean(0)).sum() / slowest.sum())


def simulate(shape: Shape, d_model: int = 768, num_rows: int = 200_000) -> dict[str, float]:
    """Straggler idle at 8 ranks, by what is cut by."""
    lengths = lengths_of(shape, num_rows, _PROFILE)
    static = lengths[Group.STATIC] + _PROFILE
    others = lengths[Group.REALTIME] + lengths[Group.CANDIDATE]
    tokens = static + others
    # A real-time token or candidate sees half of the real-time tokens on average, and itself.
    pairs = static**2 + others * (static + lengths[Group.REALTIME] / 2 + 1)
    work = work_of(tokens, pairs, d_model)
    costs = {"users": np.ones(num_rows), "tokens": tokens, "flops": work}
    result = {}
    for name, cost in costs.items():
        of_ranks = [
            [work[part][run].sum() for run in runs_of(cost[part], _USERS * cost.mean())]
            for part in (slice(rank, None, _SIMULATED) for rank in range(_SIMULATED))
        ]
        steps = min(len(one) for one in of_ranks)
        result[name] = round(idle(np.array([one[:steps] for one in of_ranks])), 4)
    return result


def _small() -> Config:
    base = preset_named("tiny")
    assert isinstance(base.model, MtgrConfig)
    model = dataclasses.replace(base.model, d_model=256, num_heads=4, max_static=1000)
    return dataclasses.replace(base, model=model)


def _on_rank(rank: int, folder: str, num_steps: int, num_users: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", _RANKS)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=_RANKS)
    config = _small()
    trainer = Trainer(FOODLOG, config, torch.device("cpu"))
    taken: dict[str, dict[str, list[float]]] = {}
    for name, shape in _SHAPES.items():
        # All ranks know all lengths, and each has its own rows, enough for the steps.
        lengths = lengths_of(shape, _RANKS * num_users * (num_steps + 4) * 2, _PROFILE)
        rows = batch_of(FOODLOG, {group: some[rank::_RANKS] for group, some in lengths.items()})
        tokens, pairs = rows.tokens_B().numpy(), rows.pairs_B().numpy()
        work = work_of(tokens, pairs, config.model.d_model)
        costs = {"users": np.ones(rows.num_rows), "tokens": tokens, "flops": work}
        means = torch.tensor([cost.mean() for cost in costs.values()])
        dist.all_reduce(means)
        for (cut, cost), mean in zip(costs.items(), means.tolist(), strict=True):
            runs = list(runs_of(cost, num_users * mean / _RANKS))[: num_steps + 1]
            seconds = [_timed(trainer, rows, run) for run in runs]
            taken.setdefault(name, {})[cut] = seconds[1:]  # the first one warms up
    Path(folder, f"{rank}.json").write_text(json.dumps(taken))
    dist.destroy_process_group()


def _timed(trainer: Trainer, rows: JaggedBatch, run: slice) -> float:
    batch = rows.select(torch.arange(run.start, run.stop))
    step = Step(
        name="0",
        batch=batch,
        num_candidates=batch.num_candidates,
        weight=float(batch.num_candidates * _RANKS),
        num_tokens=batch.num_tokens * _RANKS,
        row_hash=torch.ones(batch.num_rows),
    ).ready(0.0)
    start = time.thread_time()
    trainer.step(step)
    return time.thread_time() - start


def measure(num_steps: int, num_users: int) -> dict[str, dict[str, float]]:
    """Straggler idle on gloo ranks, by shape and what is cut by."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_on_rank, args=(folder, num_steps, num_users), nprocs=_RANKS)  # type: ignore[attr-defined,no-untyped-call]
        taken = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(_RANKS)]
    return {
        shape: {cut: round(idle(np.array([one[shape][cut] for one in taken])), 4) for cut in CUTS}
        for shape in _SHAPES
    }


def _run(arguments: argparse.Namespace) -> Mapping[str, Any]:
    simulated = {name: simulate(shape) for name, shape in _SHAPES.items()}
    measured = measure(arguments.steps, arguments.users)
    summary = {
        "straggler_idle": simulated["P"]["flops"],
        "straggler_idle_users": simulated["P"]["users"],
        "straggler_idle_zipf": simulated["zipf"]["flops"],
        "straggler_idle_zipf_users": simulated["zipf"]["users"],
        "straggler_idle_measured": measured["P"]["flops"],
        "straggler_idle_measured_users": measured["P"]["users"],
    }
    report = {
        "summary": summary,
        "simulated": {"ranks": _SIMULATED, "users_a_rank": _USERS, "model": "large", "idle": simulated},
        "measured": {"ranks": _RANKS, "users_a_rank": arguments.users, "steps": arguments.steps,
                     "model": "2 blocks, d 256", "idle": measured},
        "shapes": {name: shape.text for name, shape in _SHAPES.items()},
        "machine": {"cores": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 1),
                    "python": platform.python_version(), "torch": torch.__version__},
        "commit": git_sha(),
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Simulates and measures; see `command.run` for the exit codes."""
    parser = command.parser("benchmarks.balance", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=20, help="measured steps")
    parser.add_argument("--users", type=int, default=12, help="users of a rank in a measured step")
    return command.run(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
