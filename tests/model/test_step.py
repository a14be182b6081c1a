"""The training step: ranks and parts are one big batch; what it reads late, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from deltalake import write_deltalake

from model.config.presets import preset_named, tiny
from model.config.run import TrainConfig
from model.data.capacity import Capacities
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable
from model.data.steps import Step
from model.data.synthetic import random_batch, random_samples
from model.embeddings.sizes import TableSize
from model.judging.scoring import SCORES, Scorer
from model.rankers.protocol import build_ranker
from model.runs.sharded import ShardReader
from model.training import loop as training
from model.training import ranks
from model.training.loader import Loader, with_next
from model.training.ranks import process_group
from model.training.schedule import rate_share
from model.training.step import OutOfMemoryError, Trainer
from model.training.tracing import traced
from model.training.watch import NonFiniteLossError
from spark_jobs.contract import locations
from spark_jobs.contract.command import CommandError
from spark_jobs.lake import verdicts
from tests.model.ranks import on_ranks
from tests.model.test_training import CPU, DATASET, DAYS, TABLES, config, saved, unlogged

# Where each rank's rows of a step end: different cuts, the last one with a rank that has none.
CUTS = {1: [], 2: [3], 4: [1, 1, 8]}
ROWS = 10


def a_step(number: int, rank: int, world_size: int) -> Step:
    rows = random_batch(DATASET, 40, seed=3).select(torch.arange(ROWS * number, ROWS * (number + 1)))
    bounds = [0, *((cut + number) % (ROWS + 1) for cut in CUTS[world_size]), ROWS]
    bounds = sorted(bounds)
    batch = rows.select(torch.arange(bounds[rank], bounds[rank + 1]))
    weight = float(rows.num_candidates)
    return Step(
        name=str(number),
        batch=batch,
        num_candidates=rows.num_candidates,
        weight=weight,
        num_tokens=rows.num_tokens,
        row_hash=torch.ones(batch.num_rows),
    )


def take_steps(
    rank: int, world_size: int, folder: Path, *, padded: bool = False, hashed: bool = False, **changes: Any
) -> tuple[list[tuple[str, float]], ShardReader]:
    ours = config(**changes)
    if hashed:
        tables = TABLES | {"merchant_id": TableSize(rows=300, width=16)}
        model = dataclasses.replace(ours.model, id_tables="hashed", tables=tables)
        ours = dataclasses.replace(ours, model=model)
    trainer = Trainer(DATASET, ours, CPU)
    trainer.scaler.fit(random_batch(DATASET, 40, seed=3))
    capacities = Capacities(batch_tokens=200) if padded else None
    steps = [
        a_step(number, rank, world_size).ready(
            trainer.config.train.frozen_share,
            num_parts=trainer.config.train.accumulate,
            capacities=capacities,
        )
        for number in range(4)
    ]
    for step, following in with_next(steps):
        trainer.step(step, following)
    return trainer.losses(), saved(trainer, folder / f"of_{world_size}")


def assert_equal(one: ShardReader, other: ShardReader, atol: float) -> None:
    """Weights, averages and the tables' optimizer states are."""
    for kind in ("weights/", "averaged/", "sparse/"):
        assert sorted(one.names(kind)) == sorted(other.names(kind))
        for name in one.names(kind):
            got, expected = one.tensor(name), other.tensor(name)
            torch.testing.assert_close(
                got, expected, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )


def steps_of_rank(folder: Path, changes: dict[str, Any]) -> None:
    ranks.SMALL_TABLE = 3000  # in a process of its own
    rank, world_size = dist.get_rank(), dist.get_world_size()
    losses, _ = take_steps(rank, world_size, folder, **changes)
    loader = Loader(SampleEncoder(DATASET), config(passes=2), CPU)
    with loader.steps(SamplesTable(DATASET), DAYS[0]) as steps:
        read = [(one.name, one.users, one.weight, one.num_tokens, one.batch.num_tokens) for one in steps]
    shared: list[Any] = [None] * world_size
    dist.all_gather_object(shared, read)
    if rank == 0:
        torch.save({"losses": losses, "read": shared}, folder / "ranks.pt")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One day of samples."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for name in ("MTGR_LAKE", "MTGR_RUNS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    rows = random_samples(DATASET, 41, seed=0, ds=DAYS[0])
    write_deltalake(locations.table("foodlog", "samples"), rows, partition_by=["ds"])
    verdicts.allow(DATASET.name, "samples", DAYS, "a test")
    return tmp_path


@pytest.mark.parametrize(
    ("world_size", "how"),
    [
        (2, "hashed"),
        (2, "padded"),
        (2, "sharded"),
        pytest.param(2, "as it comes", marks=pytest.mark.slow),
        *(
            pytest.param(4, how, marks=pytest.mark.slow)
            for how in ("as it comes", "hashed", "padded", "sharded")
        ),
    ],
)
def test_any_cut_over_ranks_and_parts_trains_as_one_big_batch(lake: Path, world_size: int, how: str) -> None:
    """Also where batches are padded and the next step's ids are sent while one is computed, and by FSDP2.

    Of hashed ids some have tables that are cut by rows, others tables that every rank has whole.
    """
    changes: dict[str, Any] = {"accumulate": world_size // 2}
    if how == "padded":
        changes = {"padded": True}
    elif how == "sharded":
        changes = {"accumulate": 2, "fully_sharded": True}
    elif how == "hashed":
        changes = {"hashed": True}
    on_ranks(world_size, steps_of_rank, lake, changes)
    many = torch.load(lake / "ranks.pt", weights_only=False)
    with process_group(CPU):
        losses, one = take_steps(0, 1, lake, hashed=how == "hashed")
    np.testing.assert_allclose([v for _, v in many["losses"]], [v for _, v in losses], rtol=1e-5)
    assert_equal(ShardReader(lake / f"of_{world_size}"), one, 2e-5)
    # What the ranks' loaders gave: as many steps on each, equal sums, and every row once a pass.
    read = many["read"]
    assert len({len(steps) for steps in read}) == 1
    rows = random_samples(DATASET, 41, seed=0, ds=DAYS[0])
    batch = SampleEncoder(DATASET).encode(rows)
    for of_step in zip(*read, strict=True):
        assert len({(name, weight, tokens) for name, _, weight, tokens, _ in of_step}) == 1
        assert sum(own for *_, own in of_step) == of_step[0][3]
    for number in range(2):
        of_pass = [one for steps in read for one in steps if one[0].startswith(f"{DAYS[0]}/{number}/")]
        users = [int(user) for _, some, *_ in of_pass if some is not None for user in some]
        assert sorted(users) == list(range(41))
        weights = {name: weight for name, _, weight, *_ in of_pass}
        assert sum(weights.values()) == batch.num_candidates


@pytest.mark.parametrize("preset", ["tiny", "user_tower"])
def test_a_batch_in_parts_is_the_big_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, preset: str
) -> None:
    """One update of the dense part and of each row, to 1e-6.

    AdamW divides by the root of a gradient's square: where that is near zero, any two orders of a sum differ
    by as much as a step. A larger eps leaves the gradients to be compared.
    """
    monkeypatch.delenv("RANK", raising=False)
    states = []
    for parts in (1, 3, 16):  # 16: more than rows
        base = preset_named(preset)
        train = dataclasses.replace(config().train, accumulate=parts, clip_norm=1e9)
        with process_group(CPU):
            trainer = Trainer(DATASET, dataclasses.replace(base, train=train), CPU)
            trainer.scaler.fit(random_batch(DATASET, 40, seed=3))
            for group in trainer.optimizer.param_groups:
                group["eps"] = 1e-2
            for number in range(3):
                trainer.step(a_step(number, 0, 1))
            states.append((trainer.losses(), saved(trainer, tmp_path / str(parts))))
    for losses, state in states[1:]:
        np.testing.assert_allclose([v for _, v in losses], [v for _, v in states[0][0]], atol=1e-6)
        assert_equal(state, states[0][1], 1e-6)


def test_recomputed_activations_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with process_group(CPU):
        losses, kept = take_steps(0, 1, tmp_path / "kept")
        again, computed = take_steps(0, 1, tmp_path / "again", recompute=True)
    assert losses == again
    assert_equal(kept, computed, 0)


def test_schedules() -> None:
    base = dataclasses.replace(tiny().train, warmup_steps=3)
    assert [rate_share(base, step, 0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    tokens = dataclasses.replace(base, warmup_tokens=1000)
    assert [rate_share(tokens, 7, count) for count in (100, 500, 1000, 9000)] == [0.1, 0.5, 1.0, 1.0]
    cosine = dataclasses.replace(base, warmup_steps=0, schedule="cosine", decay_steps=100, final_share=0.2)
    assert rate_share(cosine, 0, 0) == 1.0
    assert rate_share(cosine, 50, 0) == pytest.approx(0.6)
    assert rate_share(cosine, 25, 0) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate_share(cosine, 100, 0) == rate_share(cosine, 10**6, 0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear'; use one of constant, cosine"),
        ({"schedule": "cosine"}, "falls over decay_steps, which is 0"),
        ({"dense_optimizer": "sgd"}, "dense_optimizer is 'sgd'; use one of adamw, muon"),
        ({"dense_optimizer": "muon", "fully_sharded": True}, "'muon' needs whole matrices"),
        ({"checkpoints": 0}, "TrainConfig.checkpoints is 0; it must be positive"),
        ({"balance": "rows"}, "balance is 'rows'; use one of tokens, flops"),
        ({"accumulate": 0}, "TrainConfig.accumulate is 0; it must be positive"),
        ({"final_share": 1.5}, r"final_share is 1.5; it must lie in \[0, 1\]"),
        ({"warmup_tokens": -1}, "must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(batch_tokens=1, dense_lr=1.0, **changes)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_that_is_not_finite_names_its_row(monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with process_group(CPU):
        trainer = Trainer(DATASET, config(accumulate=accumulate), CPU)
        good = a_step(0, 0, 1)
        trainer.step(good)
        weights = good.batch.weights.clone()
        ends = good.batch.num_candidates_B().cumsum(0)
        weights[ends[6]] = float("nan")  # the first candidate of row 7
        bad = dataclasses.replace(
            good, name="1", batch=dataclasses.replace(good.batch, weights=weights), users=np.arange(100, 110)
        )
        trainer.step(bad)
        expected = (
            r"step 1 \(day/pass/step\): loss nan, .* first row whose loss is not finite: row 7 \(user 107\)"
        )
        with pytest.raises(NonFiniteLossError, match=expected):
            trainer.losses()


def test_a_loss_that_is_not_finite_is_noticed_without_being_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with process_group(CPU):
        trainer = Trainer(DATASET, config(dense_lr=1e30), CPU)
        for _ in range(39):
            trainer.step(a_step(0, 0, 1))
        assert trainer.num_pending == 39
        with pytest.raises(NonFiniteLossError, match=r"its 10 rows is not|first row"):
            trainer.step(a_step(0, 0, 1))


def test_a_step_beyond_the_memory_names_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with process_group(CPU):
        trainer = Trainer(DATASET, config(), CPU)
        monkeypatch.setattr(trainer, "_backward", full)
        with pytest.raises(
            OutOfMemoryError, match=r"step 0 .*lower batch_tokens \(of 1 ranks together 400\)"
        ):
            trainer.step(a_step(0, 0, 1))


def test_a_model_scores_in_the_precision_that_it_was_trained_in() -> None:
    rows = random_samples(DATASET, 8, seed=2)
    one = config(precision="bfloat16")
    ranker = build_ranker(DATASET, one.model, 1)
    scores = {
        precision: Scorer(DATASET, config(precision=precision), ranker).score(rows)
        for precision in ("bfloat16", "float32")
    }
    batch = SampleEncoder(DATASET).encode(rows)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        # Of both at once: the last bit of a sigmoid hangs on where in a tensor its value lies.
        expected = torch.cat([ranker(batch.frozen()), ranker(batch)]).sigmoid().numpy()
    np.testing.assert_array_equal(np.stack([scores["bfloat16"][name] for name in SCORES]), expected)
    for name in SCORES:
        np.testing.assert_allclose(scores["bfloat16"][name], scores["float32"][name], atol=0.02)
        assert not np.array_equal(scores["bfloat16"][name], scores["float32"][name])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_rank_that_fails_ends_all_with_its_reason(lake: Path) -> None:
    """Rank 1 reads the row with an id that none may have; rank 0 would wait for it in the next exchange."""
    rows = random_samples(DATASET, 41, seed=0, ds=DAYS[0])
    broken = rows.to_pylist()
    broken[30]["candidate_item_id"][0] = -1
    write_deltalake(
        locations.table("foodlog", "samples"),
        pa.Table.from_pylist(broken, schema=rows.schema),
        mode="overwrite",
        partition_by=["ds"],
    )
    verdicts.allow(DATASET.name, "samples", DAYS, "a test")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    train = ["-m", "model.train", "--dataset", "foodlog", "--preset", "tiny", "--ds", DAYS[1]]
    done = subprocess.run([*torchrun, *train], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode != 0
    (reason,) = (line for line in done.stderr.splitlines()[-12:] if "is not an id" in line)
    assert "SamplesUnavailableError: file " in reason
    assert "column candidate_item_id, row 30 (user 30)" in reason
    assert not list(lake.rglob("weights.safetensors"))


@pytest.mark.usefixtures("lake")
def test_a_trace_of_some_steps_opens_in_perfetto(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "trace.json"
    training.train(DATASET, config(batch_tokens=100), DAYS[1], CPU, unlogged, trace=path)
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event.get("name", "").startswith("ProfilerStep") for event in events) >= 4
    with (
        process_group(CPU),
        pytest.raises(CommandError, match="fewer than 8 steps"),
        traced(path, CPU) as step,
    ):
        step()
