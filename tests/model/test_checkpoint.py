"""Checkpoints: as many ranks go on to the bit, any number takes one up, and a kill leaves one."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from model.data.steps import Step
from model.data.synthetic import random_batch
from model.embeddings.mixing import owner_of
from model.runs import sharded
from model.runs.files import RunError
from model.runs.sharded import ShardReader, ShardWriter
from model.runs.store import WEIGHTS, complete_runs, load_run
from model.training import loop as training
from model.training import saver as saving
from model.training.parts import Part, load, save
from model.training.ranks import process_group
from model.training.saver import Saver
from model.training.step import Trainer
from tests.model.ranks import on_ranks
from tests.model.test_training import CPU, DATASET, DAYS, config, lake, saved, unlogged  # noqa: F401

_DAYS = ("2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04")
# Ids go by age and for want of room, wait for admission, and parts of a step are added up.
_RULES = {"accumulate": 2, "ttl_days": 2, "admission": 2, "max_rows": 400, "eviction": "lru"}


def a_step(number: int, rank: int, num_ranks: int) -> Step:
    """Ten rows, other ones for each number, dealt to the ranks."""
    rows = random_batch(DATASET, 10, seed=number)
    batch = rows.select(torch.arange(rank, 10, num_ranks))
    return Step(
        name=f"{number}",
        batch=batch,
        num_candidates=rows.num_candidates,
        weight=float(rows.num_candidates),
        num_tokens=rows.num_tokens,
        row_hash=torch.ones(batch.num_rows),
    )


def take(trainer: Trainer, first: int, last: int) -> list[tuple[str, float]]:
    for number in range(first, last):
        trainer.begin_day(_DAYS[number // 3])
        trainer.step(a_step(number, dist.get_rank(), dist.get_world_size()))
    return trainer.losses()


def a_trainer(rules: dict[str, Any]) -> Trainer:
    return Trainer(DATASET, config(**rules), CPU)


def contents(reader: ShardReader) -> dict[str, Tensor]:
    return {name: reader.tensor(name) for name in reader.names("")}


def assert_same(reader: ShardReader, other: ShardReader) -> None:
    one, two = contents(reader), contents(other)
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]


def resumed_is_never_stopped(folder: Path, rules: dict[str, Any]) -> None:
    """Losses and state after twelve steps, with and without a new process' worth of state in between."""
    whole = a_trainer(rules)
    whole.scaler.fit(random_batch(DATASET, 40, seed=3))
    take(whole, 0, 6)
    torch.manual_seed(5 + dist.get_rank())
    middle = saved(whole, folder / "middle")
    drawn = torch.rand(3)
    losses = take(whole, 6, 12)
    resumed = a_trainer(rules)
    take(resumed, 0, 2)  # what it was before does not matter
    resumed.load(middle)
    assert torch.equal(torch.rand(3), drawn)
    assert take(resumed, 6, 12) == losses
    end = saved(whole, folder / "end")
    torch.manual_seed(0)
    first = saved(whole, folder / "first")
    torch.manual_seed(0)
    second = saved(resumed, folder / "second")
    assert_same(first, second)
    changed = [name for name, one in contents(middle).items() if not torch.equal(one, end.tensor(name))]
    kinds = {name.partition("/")[0] for name in changed}
    assert kinds == {"weights", "averaged", "sparse", "dense", "rows", "random", "num_steps", "num_tokens"}
    waiting = sum(len(middle.tensor(name)) for name in middle.names("rows/") if name.endswith("/waiting_ids"))
    assert waiting


@pytest.mark.parametrize(
    ("num_ranks", "rules"),
    [
        (1, {}),
        (2, {"dense_optimizer": "muon"}),
        (2, {"fully_sharded": True}),
        pytest.param(4, {}, marks=pytest.mark.slow),
    ],
)
def test_to_go_on_is_never_to_have_stopped(tmp_path: Path, num_ranks: int, rules: dict[str, Any]) -> None:
    on_ranks(num_ranks, resumed_is_never_stopped, tmp_path, _RULES | rules)


def test_muon_moves_the_hidden_matrices_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As torch's own does; AdamW the rest, as without it; a change of optimizer begins anew what changes."""
    monkeypatch.delenv("RANK", raising=False)
    weights, kept = {}, {}
    for name in ("adamw", "muon"):
        with process_group(CPU):
            trainer = a_trainer({"dense_optimizer": name, "weight_decay": 0.1})
            before = {key: one.clone() for key, one in contents(saved(trainer, tmp_path / "start")).items()}
            take(trainer, 0, 1)
            kept[name] = saved(trainer, tmp_path / name)
            weights[name] = contents(kept[name])
            lr = trainer.optimizer.param_groups[0]["lr"]
            grads = {f"weights/{n}": p.grad for n, p in zip(trainer.dense_names, trainer.dense, strict=True)}
    hidden = [f"weights/blocks.{k}.{layer}.weight" for k in (0, 1) for layer in ("uvqk", "out")]
    differ = [
        key for key, one in weights["muon"].items() if not torch.equal(one, weights["adamw"].get(key, one))
    ]
    assert [key for key in differ if key.startswith("weights/")] == sorted(hidden)
    for key in hidden:
        one = torch.nn.Parameter(before[key])
        one.grad = grads[key]
        torch.optim.Muon([one], lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
        assert torch.equal(one.detach(), weights["muon"][key])
    assert set(kept["muon"].names("dense/blocks.0.out.weight/")) == {
        "dense/blocks.0.out.weight/momentum_buffer"
    }
    with process_group(CPU):
        trainer = a_trainer({"dense_optimizer": "muon"})
        trainer.load(kept["adamw"])
        take(trainer, 1, 2)
    assert caplog.text.count("has another optimizer now") == len(hidden)


def make_one(folder: Path, name: str, is_sharded: bool) -> None:
    trainer = a_trainer({"fully_sharded": is_sharded})
    trainer.scaler.fit(random_batch(DATASET, 40, seed=3))
    take(trainer, 0, 6)
    saved(trainer, folder / name)


def take_up(folder: Path, name: str, is_sharded: bool) -> None:
    trainer = a_trainer({"fully_sharded": is_sharded})
    trainer.load(ShardReader(folder / name))
    for width, rows in trainer._rows.items():
        state = rows.live.state()
        for table in range(len(rows.embedding_configs())):
            owners = owner_of(state["ids"][state["tables"] == table], table, dist.get_world_size())
            assert (owners == dist.get_rank()).all()
        assert len(state["ids"]), width
    saved(trainer, folder / f"{name}_on_{dist.get_world_size()}")
    take(trainer, 6, 8)


def published(reader: ShardReader) -> dict[str, Tensor]:
    with process_group(CPU):
        return a_trainer({}).published(reader)


@pytest.mark.parametrize(
    ("made_by", "taken_by", "sharded"),
    [
        (1, [2], "none"),
        (2, [1], "made"),
        pytest.param(1, [2], "taken", marks=pytest.mark.slow),
        pytest.param(2, [1], "none", marks=pytest.mark.slow),
        pytest.param(4, [1, 2], "none", marks=pytest.mark.slow),
        pytest.param(4, [1, 2], "both", marks=pytest.mark.slow),
        pytest.param(1, [4], "none", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_ranks_takes_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_by: int, taken_by: list[int], sharded: str
) -> None:
    """Whether the dense weights are replicas or sharded, before and after."""
    monkeypatch.delenv("RANK", raising=False)
    on_ranks(made_by, make_one, tmp_path, "made", sharded in ("made", "both"))
    made = ShardReader(tmp_path / "made")
    assert made.num_ranks == made_by
    for num_ranks in taken_by:
        on_ranks(num_ranks, take_up, tmp_path, "made", sharded in ("taken", "both"))
        taken = ShardReader(tmp_path / f"made_on_{num_ranks}")
        fixed = [name for name in made.names("") if not name.startswith(("rows/", "random/"))]
        assert fixed == [name for name in taken.names("") if not name.startswith(("rows/", "random/"))]
        assert not [name for name in fixed if not torch.equal(made.tensor(name), taken.tensor(name))]
        one, two = published(made), published(taken)
        assert one.keys() == two.keys()
        assert not [name for name in one if not torch.equal(one[name], two[name])]
        for column in ("counts", "seen", "optimizer_0"):
            values = [
                torch.cat([one.tensor(name) for name in one.names("rows/") if name.endswith(f"/{column}")])
                for one in (made, taken)
            ]
            assert torch.equal(*(value.flatten().sort().values for value in values)), column


def write_each_its_own(folder: Path) -> None:
    """Of a sharded tensor a rank writes its rows, of a replica one rank all; any cut of rows is read."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    rows = torch.arange(30.0).view(10, 3)
    first, last = 10 * rank // num_ranks, 10 * (rank + 1) // num_ranks
    parts = {
        "sharded": Part(tensor=rows[first:last].clone(), first=first, shape=rows.shape),
        "replica": Part.whole(torch.ones(5)),
        f"own/{rank}": Part.whole(torch.tensor(rank)),
    }
    save(ShardWriter(folder / "c", {"a": 1}), parts, dist.group.WORLD)
    reader = ShardReader(folder / "c")
    written = [load_file(folder / f"c/rank_{k}.safetensors") for k in range(num_ranks)]
    assert all({"sharded", "own"} <= {re.split("[/@]", name)[0] for name in one} for one in written)
    assert sum(name.startswith("replica") for one in written for name in one) == 1
    assert reader.values == {"a": 1}
    assert torch.equal(reader.tensor("sharded"), rows)
    other = Part(tensor=torch.zeros(4 + rank, 3), first=3 * rank, shape=rows.shape)
    load(reader, {"sharded": other, "replica": Part.whole(torch.zeros(5))}, dist.group.WORLD)
    assert torch.equal(other.tensor, rows[3 * rank : 4 + 4 * rank])
    wrong = Part.whole(torch.zeros(6))
    with pytest.raises(RunError, match=r"Size mismatch between saved torch.Size\(\[5\]\)"):
        load(reader, {"replica": wrong}, dist.group.WORLD)
    with pytest.raises(RunError, match="Missing key in checkpoint state_dict: other"):
        load(reader, {"other": wrong}, dist.group.WORLD)
    if rank == 1:  # what one rank cannot write, all ranks hear of
        sharded.save_file = _full
    with pytest.raises(RunError, match=r"rank 1: cannot write .*rank_1.safetensors .*No space left"):
        save(ShardWriter(folder / "c", {"a": 2}), parts, dist.group.WORLD)
    assert ShardReader(folder / "c").values == {"a": 1}


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_ranks_write_their_own_and_read_what_they_need(tmp_path: Path) -> None:
    on_ranks(2, write_each_its_own, tmp_path)


class KilledError(BaseException):
    """Ends a run where a kill would."""


@pytest.mark.parametrize("phase", ["half_a_file", "no_manifest", "before_rename", "old_one_removed"])
@pytest.mark.usefixtures("lake")
def test_a_save_that_is_killed_leaves_the_one_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, phase: str
) -> None:
    """Wherever the second save is killed, the run goes on from a whole one, with equal losses and weights."""
    training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    expected = load_run(DATASET.name, "tiny", DAYS[2])
    monkeypatch.setenv("MTGR_RUNS", str(tmp_path / "killed"))
    calls: list[Any] = []

    def second(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == (1 if phase == "old_one_removed" else 2):
                if phase == "half_a_file":
                    args[1].write_bytes(b"half")
                raise KilledError
            return original(*args)

        return called

    with monkeypatch.context() as patch:
        if phase == "half_a_file":
            patch.setattr(sharded, "save_file", second(sharded.save_file))
        elif phase == "no_manifest":
            patch.setattr(sharded, "write_text", second(sharded.write_text))
        elif phase == "before_rename":
            patch.setattr(sharded, "os", SimpleNamespace(replace=second(os.replace)))
        else:
            patch.setattr(saving, "shutil", SimpleNamespace(rmtree=second(shutil.rmtree)))
        with pytest.raises((KilledError, RunError)):
            training.train(DATASET, config(checkpoints=1), DAYS[2], CPU, unlogged)
    assert complete_runs(DATASET.name, "tiny") == []
    (partial,) = (tmp_path / "killed" / DATASET.name / "tiny").glob(".*.partial")
    whole = [ShardReader(path).tensor("num_steps").item() for path in partial.glob("progress-*")]
    assert sorted(whole) == ([3, 6] if phase == "old_one_removed" else [3])
    training.train(DATASET, config(checkpoints=1), DAYS[2], CPU, unlogged)
    made = load_run(DATASET.name, "tiny", DAYS[2])
    assert made.record["losses"] == expected.record["losses"]
    expected_weights, weights = (load_file(run.path / WEIGHTS) for run in (expected, made))
    assert not [name for name in weights if not torch.equal(weights[name], expected_weights[name])]
    assert sorted(path.name for path in made.path.iterdir()) == sorted(
        ["checkpoint", "config.json", "train.json", WEIGHTS]
    )


def _train(started: Path) -> None:
    started.touch()
    training.train(DATASET, config(checkpoint_steps=1), DAYS[2], CPU, unlogged)


@pytest.mark.slow
@pytest.mark.usefixtures("lake")
def test_a_run_that_is_killed_whenever_ends_as_one_that_was_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SIGKILL at random moments of a training that saves after every step, asynchronously."""
    began = time.monotonic()
    training.train(DATASET, config(checkpoint_steps=1), DAYS[2], CPU, unlogged)
    seconds = time.monotonic() - began
    expected = load_run(DATASET.name, "tiny", DAYS[2])
    monkeypatch.setenv("MTGR_RUNS", str(tmp_path / "killed"))
    draw, killed = random.Random(7), 0
    while not complete_runs(DATASET.name, "tiny"):
        started = tmp_path / f"started_{killed}"
        process = mp.get_context("spawn").Process(target=_train, args=(started,))
        process.start()
        while not started.exists():
            assert process.is_alive()
            time.sleep(0.01)
        # In the end it must come through: after a few kills it is given all the time it needs.
        process.join(draw.uniform(0.1, 1.0) * seconds if killed < 8 else None)
        killed += process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert killed >= 3
    made = load_run(DATASET.name, "tiny", DAYS[2])
    assert made.record["losses"] == expected.record["losses"]
    expected_weights, weights = (load_file(run.path / WEIGHTS) for run in (expected, made))
    assert not [name for name in weights if not torch.equal(weights[name], expected_weights[name])]


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest"])
@pytest.mark.usefixtures("lake")
def test_of_two_checkpoints_the_older_serves_where_the_newer_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    expected = load_run(DATASET.name, "tiny", DAYS[2])
    monkeypatch.setenv("MTGR_RUNS", str(tmp_path / "killed"))

    def die(phase: str) -> None:
        if phase == "train:day_trained":
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(training, "reach", die)
        with pytest.raises(KilledError):
            training.train(DATASET, config(checkpoint_steps=1), DAYS[2], CPU, unlogged)
    (partial,) = (tmp_path / "killed" / DATASET.name / "tiny").glob(".*.partial")
    older, newer = sorted(partial.glob("progress-*"))  # two are kept
    file = newer / ("manifest.json" if damage == "manifest" else "rank_0.safetensors")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(RunError, match="cannot be read"):
        ShardReader(newer)
    caplog.set_level("INFO")
    training.train(DATASET, config(checkpoint_steps=1), DAYS[2], CPU, unlogged)
    made = load_run(DATASET.name, "tiny", DAYS[2])
    assert f"continuing after step {int(older.name.partition('-')[2])} of" in caplog.text
    assert made.record["losses"] == expected.record["losses"]


def test_steps_are_taken_while_a_checkpoint_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is written is the state of the step at which it was begun; the next save waits for it."""
    monkeypatch.delenv("RANK", raising=False)
    let, order = threading.Event(), []
    write = sharded.save_file

    def slow(tensors: dict[str, Tensor], path: Path) -> None:
        assert let.wait(60)
        write(tensors, path)
        order.append(path.parent.name)

    with process_group(CPU):
        trainer = a_trainer({})
        trainer.scaler.fit(random_batch(DATASET, 40, seed=3))
        take(trainer, 0, 3)
        at_once = saved(trainer, tmp_path / "at_once")
        monkeypatch.setattr(sharded, "save_file", slow)
        with Saver(trainer.group) as saver:
            saver.save(tmp_path / "p-1", trainer.state(), {})
            take(trainer, 3, 6)
            assert not order
            assert not (tmp_path / "p-1").exists()
            threading.Timer(0.2, let.set).start()
            saver.save(tmp_path / "p-2", trainer.state(), {}, keep=2)
            assert order[0] == ".p-1.new"
            assert_same(ShardReader(tmp_path / "p-1"), at_once)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]
        assert int(ShardReader(tmp_path / "p-2").tensor("num_steps")) == 6
        monkeypatch.setattr(sharded, "save_file", _full)
        saver.save(tmp_path / "p-3", trainer.state(), {})
        with pytest.raises(RunError, match="No space left"):
            saver.save(tmp_path / "p-4", trainer.state(), {})
    assert sorted(path.name for path in tmp_path.glob("p-*")) == ["p-1", "p-2"]


def test_nothing_that_is_read_is_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with process_group(CPU):
        trainer = a_trainer({})
        saved(trainer, tmp_path / "c")
        monkeypatch.setattr("pickle.load", _full)
        monkeypatch.setattr(torch, "load", _full)
        trainer.load(ShardReader(tmp_path / "c"))
        trainer.published(ShardReader(tmp_path / "c"))
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {".json", ".safetensors"}
    other = config()
    other = dataclasses.replace(other, model=dataclasses.replace(other.model, num_blocks=1))
    with process_group(CPU):
        trainer = Trainer(DATASET, other, CPU)
        with pytest.raises(RunError, match="has other weights than this model"):
            trainer.load(ShardReader(tmp_path / "c"))
