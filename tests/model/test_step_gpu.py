"""Steps on a GPU: nothing in them waits for the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model.config.presets import preset_named
from model.data.capacity import Capacities
from model.data.steps import Step
from model.data.synthetic import random_batch
from model.runs.sharded import ShardReader
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


def on_gpu(rank: int, world_size: int, folder: str, way: str, first: int, end: int, base: str = "") -> None:
    """Takes steps `first` to `end` on a rank, behind the checkpoint `base`; rank 0 writes what came."""
    gpu = torch.device("cuda", rank)
    torch.cuda.set_device(gpu)
    store = dist.FileStore(f"{folder}/store{world_size}_{way}_{first}", world_size)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=world_size, device_id=gpu)
    plain = config(cuda_graphs=way == "captured", fully_sharded=way == "sharded")
    model = dataclasses.replace(plain.model, d_model=64, ops_backend="triton")
    ours = dataclasses.replace(plain, model=model)
    trainer, capacities, stream = Trainer(DATASET, ours, gpu), capacities_of(ours, gpu), side_stream(gpu)
    trainer.scaler.fit(random_batch(DATASET, 40, seed=3).to(gpu))
    if base:
        trainer.load(ShardReader(Path(base)))
    steps = [
        delivered(
            dataclasses.replace(
                rows_of_step(number % 4, rank, world_size).ready(0.5, pin=True, capacities=capacities),
                name=str(number),
            ),
            gpu,
            stream,
        )
        for number in range(first, end)
    ]
    for step, following in with_next(steps):
        trainer.step(step, following)
    name = f"of_{world_size}_{way}_{end}"
    reader = saved(trainer, Path(folder) / name)
    if rank == 0:
        weights = {
            name: reader.tensor(name)
            for kind in ("weights/", "averaged/", "sparse/")
            for name in reader.names(kind)
        }
        run = {"losses": trainer.losses(), "weights": weights, "fresh": trainer.num_fresh}
        torch.save(run, f"{folder}/{name}.pt")
    else:
        trainer.losses()
    dist.destroy_process_group()


def trained(folder: Path, world_size: int, way: str, first: int, end: int, base: Path | None = None) -> Any:
    """What `on_gpu` of that many ranks has written."""
    mp.spawn(on_gpu, args=(world_size, str(folder), way, first, end, str(base or "")), nprocs=world_size)
    return torch.load(folder / f"of_{world_size}_{way}_{end}.pt", weights_only=False)


def assert_alike(one: Any, many: Any) -> None:
    """Losses and weights of two runs are equal to float32."""
    losses = [[loss for _, loss in run["losses"]] for run in (one, many)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for (name, ours), theirs in zip(one["weights"].items(), many["weights"].values(), strict=True):
        torch.testing.assert_close(
            ours, theirs, atol=2e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


some_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.mark.gpu
@some_gpus
@pytest.mark.parametrize("way", ["captured", "ddp", "sharded"])
def test_ranks_with_dynamic_tables_train_as_one(tmp_path: Path, way: str) -> None:
    """Sent by NCCL, the next step's ids beside what is computed, replayed: as one process, to float32."""
    one = trained(tmp_path, 1, "captured" if way == "captured" else "ddp", 0, 12)
    for world_size in (2, 4):
        if world_size <= torch.cuda.device_count():
            many = trained(tmp_path, world_size, way, 0, 12)
            assert (0 < many["fresh"] < 12) == (way == "captured")
            assert_alike(one, many)


@pytest.mark.gpu
@some_gpus
@pytest.mark.parametrize("way", ["captured", "sharded"])
def test_a_checkpoint_of_all_ranks_goes_on_on_half_of_them(tmp_path: Path, way: str) -> None:
    world_size = 4 if torch.cuda.device_count() >= 4 else 2
    trained(tmp_path, world_size, way, 0, 8)
    checkpoint = tmp_path / f"of_{world_size}_{way}_8"
    ours = trained(tmp_path, world_size // 2, way, 8, 14, checkpoint)
    theirs = trained(tmp_path, world_size, way, 8, 14, checkpoint)
    assert_alike(theirs, ours)
