"""Steps on a GPU: nothing in them waits for the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model.config.presets import preset_named
from model.data.capacity import Capacities
from model.data.steps import Step
from model.data.synthetic import random_batch
from model.training.loader import capacities_of, delivered, side_stream, with_next
from model.training.ranks import process_group
from model.training.step import Trainer, is_captured
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.test_step import a_step as rows_of_step
from tests.model.test_training import DATASET, config, saved


def a_step(seed: int, num_parts: int, capacities: Capacities | None = None) -> Step:
    batch = random_batch(FOODLOG, 10, seed=seed)
    step = Step(
        name=f"{seed}",
        batch=batch,
        num_candidates=batch.num_candidates,
        weight=float(batch.num_candidates),
        num_tokens=batch.num_tokens,
        row_hash=torch.linspace(0, 1, 10),
    )
    return step.ready(0.5, num_parts=num_parts, pin=True, capacities=capacities)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("preset", "accumulate"),
    [
        *[("tiny", 1), ("small", 1), ("small", 2), ("user_tower", 1)],
        *[(f"{name}_256", 1) for name in ("dnn", "moe", "multi_embed", "wukong", "dcn", "ple", "pepnet")],
    ],
)
def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, preset: str, accumulate: int) -> None:
    monkeypatch.delenv("RANK", raising=False)
    gpu, base = torch.device("cuda", 0), preset_named(preset)
    train = dataclasses.replace(base.train, accumulate=accumulate, recompute=accumulate > 1)
    with process_group(gpu):
        config = dataclasses.replace(base, train=train)
        trainer, capacities = Trainer(FOODLOG, config, gpu), capacities_of(config, gpu)
        steps = [a_step(number, accumulate, capacities) for number in range(4)]
        for step in [*steps, *steps]:  # what is built, tuned or captured at first may wait
            trainer.step(step)
        fresh = trainer.num_fresh
        torch.cuda.synchronize()
        stream = side_stream(gpu)
        try:
            torch.cuda.set_sync_debug_mode("error")
            for _ in range(11):
                for step in steps:
                    trainer.step(delivered(step, gpu, stream))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(trainer.losses()) == 52
        assert trainer.num_fresh == fresh
        assert (fresh > 0) == is_captured(trainer.config, gpu)


@pytest.mark.gpu
def test_replayed_steps_train_as_steps_that_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    gpu, base = torch.device("cuda", 0), preset_named("tiny")
    losses, weights, fresh = [], [], []
    with process_group(gpu):
        for cuda_graphs in (False, True):
            train = dataclasses.replace(base.train, cuda_graphs=cuda_graphs)
            config = dataclasses.replace(base, train=train)
            trainer, capacities = Trainer(FOODLOG, config, gpu), capacities_of(config, gpu)
            for number in range(40):
                trainer.step(a_step(number % 10, 1, capacities))
            losses.append(trainer.losses())
            state = trainer.state()
            weights.append({name: part.tensor for name, part in state.items() if name.startswith("weights/")})
            fresh.append(trainer.num_fresh)
    assert fresh[0] == 0
    assert 0 < fresh[1] < 20
    assert [loss for _, loss in losses[0]] == pytest.approx([loss for _, loss in losses[1]], abs=1e-4)
    for name, ours in weights[0].items():
        torch.testing.assert_close(ours, weights[1][name], atol=2e-4, rtol=1e-3)


def on_gpu(rank: int, world_size: int, folder: str) -> None:
    """Takes steps on a rank; the first writes losses and state."""
    gpu = torch.device("cuda", rank)
    torch.cuda.set_device(gpu)
    store = dist.FileStore(f"{folder}/store{world_size}", world_size)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=world_size, device_id=gpu)
    base = config()
    model = dataclasses.replace(base.model, d_model=64, ops_backend="triton")
    trainer = Trainer(DATASET, dataclasses.replace(base, model=model), gpu)
    capacities, stream = Capacities(batch_tokens=200), side_stream(gpu)
    trainer.scaler.fit(random_batch(DATASET, 40, seed=3).to(gpu))
    steps = [
        delivered(
            dataclasses.replace(
                rows_of_step(number % 4, rank, world_size).ready(0.5, pin=True, capacities=capacities),
                name=str(number),
            ),
            gpu,
            stream,
        )
        for number in range(12)
    ]
    for step, following in with_next(steps):
        trainer.step(step, following)
    reader = saved(trainer, Path(folder) / f"of_{world_size}")
    if rank == 0:
        weights = {
            name: reader.tensor(name)
            for kind in ("weights/", "averaged/", "sparse/")
            for name in reader.names(kind)
        }
        run = {"losses": trainer.losses(), "weights": weights, "fresh": trainer.num_fresh}
        torch.save(run, f"{folder}/{world_size}.pt")
    else:
        trainer.losses()
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_ranks_with_dynamic_tables_train_as_one(tmp_path: Path) -> None:
    """Sent by NCCL, the next step's ids beside what is computed, replayed: as one process, to float32."""
    world_sizes = [size for size in (1, 2, 4) if size <= torch.cuda.device_count()]
    for world_size in world_sizes:
        mp.spawn(on_gpu, args=(world_size, str(tmp_path)), nprocs=world_size)
    one, *others = (torch.load(tmp_path / f"{size}.pt", weights_only=False) for size in world_sizes)
    for many in others:
        assert many["fresh"] < 12
        losses = [[loss for _, loss in run["losses"]] for run in (one, many)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for (name, ours), theirs in zip(one["weights"].items(), many["weights"].values(), strict=True):
            torch.testing.assert_close(
                ours, theirs, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
            )
