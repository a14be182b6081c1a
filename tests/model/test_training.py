"""Training over a small samples table: the chain of runs, interruption, divergence, ranks."""

import contextlib
import copy
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from deltalake import write_deltalake

from model import train as command
from model.config.presets import preset_named, tiny
from model.data.encoder import SampleEncoder
from model.data.reader import SamplesTable, SamplesUnavailableError
from model.data.steps import Step
from model.data.stored import id_features
from model.data.synthetic import random_samples
from model.embeddings.numbers import NumberScaler
from model.embeddings.rules import TableFullError
from model.embeddings.sizes import TableSize, table_sizes
from model.judging.contest import Contest, evaluate
from model.judging.scoring import SCORES, Scorer
from model.rankers.protocol import build_ranker
from model.runs import sharded
from model.runs.files import RunError
from model.runs.sharded import ShardReader, ShardWriter
from model.runs.store import Run, base_of, complete_runs, load_run
from model.training import loop as training
from model.training.parts import save
from model.training.ranks import process_group
from model.training.step import Trainer
from model.training.watch import NonFiniteLossError
from spark_jobs.contract import locations
from spark_jobs.contract.features import Kind
from spark_jobs.contract.foodlog import FOODLOG
from spark_jobs.lake import verdicts

CPU = torch.device("cpu")
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
# Small tables, so that a state is small, and steps of a few rows.
DATASET = FOODLOG
TABLES = {
    name: TableSize(rows=min(size.rows, 300), width=min(size.width, 8))
    for name, size in table_sizes(DATASET, {}, 0).items()
}


def config(**changes):
    base = tiny()
    model = dataclasses.replace(
        base.model, d_model=16, token_hidden=16, head_hidden=8, ops_backend="reference", tables=TABLES
    )
    defaults = {"batch_tokens": 400, "passes": 1, "checkpoint_steps": 3, "warmup_steps": 2}
    train = dataclasses.replace(base.train, **(defaults | changes))
    return dataclasses.replace(base, model=model, train=train)


def unlogged(config, record, digest):
    """MLflow is not part of these tests."""
    return "mlflow-run"


@pytest.fixture
def lake(tmp_path, monkeypatch):
    """Three days of samples; MLflow is not part of these tests."""
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    for name in ("MTGR_LAKE", "MTGR_RUNS", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for seed, ds in enumerate(DAYS):
        add_day(ds, seed)
    return tmp_path


def add_day(ds, seed):
    table = random_samples(DATASET, 40, seed=seed, ds=ds)
    uri = locations.table(DATASET.name, "samples")
    write_deltalake(uri, table, partition_by=["ds"], mode="overwrite", predicate=f"ds = '{ds}'")
    verdicts.allow(DATASET.name, "samples", DAYS, "a test")


def saved(trainer, path):
    """What a trainer's state is as a checkpoint; every rank must call it."""
    save(ShardWriter(path, {}), trainer.state(), trainer.group)
    return ShardReader(path)


def losses(ds):
    return load_run(DATASET.name, "tiny", ds).record["losses"]


def test_a_day_at_a_time_is_all_days_at_once(lake, monkeypatch):
    first = training.train(DATASET, config(), DAYS[1], CPU, unlogged)
    second = training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    assert (first["trained_days"], second["trained_days"]) == ([DAYS[0]], [DAYS[1]])
    assert second["base"] == DAYS[1]
    assert load_run(DATASET.name, "tiny", DAYS[2]).seen_days == {DAYS[0]: 2, DAYS[1]: 2}
    daily = losses(DAYS[1]) + losses(DAYS[2])
    monkeypatch.setenv("MTGR_RUNS", str(lake / "other"))
    at_once = training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    assert losses(DAYS[2]) == daily
    assert at_once["digest"] == second["digest"]
    again = training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    assert (again["changed"], again["digest"]) == (False, at_once["digest"])


def test_dynamic_tables_forget_ids_by_days_of_data(lake):
    """Trained a day at a time or at once: what was not seen for more than `ttl_days` has no row."""
    kept = {}
    for ttl_days in (0, 1):
        one = dataclasses.replace(config(ttl_days=ttl_days), preset=f"ttl{ttl_days}")
        for ds in (DAYS[1], "2026-03-04"):
            training.train(DATASET, one, ds, CPU, unlogged)
        dynamic = Scorer.load(load_run(DATASET.name, one.preset, ds).path).ranker.inputs.embeddings.dynamic
        kept[ttl_days] = {
            (config.name, key)
            for collection in dynamic.values()
            for number, config in enumerate(collection.embedding_configs())
            for key in collection.ids[collection.starts[number] : collection.starts[number + 1]].tolist()
        }
    encoder = SampleEncoder(DATASET, config().model.max_static)
    seen = []
    for seed, ds in enumerate(DAYS):
        ids = encoder.encode(random_samples(DATASET, 40, seed=seed, ds=ds)).ids
        features = {group: id_features(DATASET, group) for group in ids}
        seen.append(
            {
                (feature.table, key)
                for group, of_group in features.items()
                for feature, row in zip(of_group, ids[group], strict=True)
                if feature.kind is Kind.ID
                for key in row.tolist()
            }
        )
    assert kept[0] == set.union(*seen)
    assert kept[1] == seen[1] | seen[2] != kept[0]


def ids_of(run):
    """How many ids have a row in the run's dynamic tables, by collection."""
    dynamic = Scorer.load(run.path).ranker.inputs.embeddings.dynamic
    return {width: len(collection.ids) for width, collection in dynamic.items()}


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_tables_with_a_limit_stay_within_it_and_a_killed_run_goes_on(lake, monkeypatch, eviction):
    training.train(DATASET, dataclasses.replace(config(), preset="free"), DAYS[2], CPU, unlogged)
    (width, wanted), *others = ids_of(load_run(DATASET.name, "free", DAYS[2])).items()
    assert not others
    limited = config(max_rows=wanted * 3 // 4, eviction=eviction)
    phases = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "reach", phases.append)
        training.train(DATASET, limited, DAYS[2], CPU, unlogged)
    expected = load_run(DATASET.name, "tiny", DAYS[2])
    assert limited.train.max_rows * 15 // 16 <= ids_of(expected)[width] <= limited.train.max_rows
    monkeypatch.setenv("MTGR_RUNS", str(lake / "killed"))
    last = len(phases) - phases[::-1].index("train:checkpoint_saved")  # by then the tables are full
    killed = []

    def die(reached):
        killed.append(reached)
        if len(killed) == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "reach", die)
        with pytest.raises(KeyboardInterrupt):
            training.train(DATASET, limited, DAYS[2], CPU, unlogged)
    assert complete_runs(DATASET.name, "tiny") == []
    training.train(DATASET, limited, DAYS[2], CPU, unlogged)
    found = load_run(DATASET.name, "tiny", DAYS[2])
    assert found.record["losses"] == expected.record["losses"]
    assert found.digest == expected.digest


def test_a_full_table_without_eviction_ends_the_training_by_name(lake):
    tables = r"hash table of width 8 for user_id \(\d+\), .*item_id \(\d+\).* has \d+ rows of at most 300 "
    with pytest.raises(
        TableFullError, match=tables + r"and \d+ new ids come in one step; raise max_rows, or"
    ):
        training.train(DATASET, config(max_rows=300), DAYS[2], CPU, unlogged)
    assert complete_runs(DATASET.name, "tiny") == []


def test_hashed_tables_train_and_go_on(lake):
    one = config()
    one = dataclasses.replace(one, model=dataclasses.replace(one.model, id_tables="hashed"))
    training.train(DATASET, one, DAYS[1], CPU, unlogged)
    assert training.train(DATASET, one, DAYS[2], CPU, unlogged)["base"] == DAYS[1]
    tables = Scorer.load(load_run(DATASET.name, "tiny", DAYS[2]).path).ranker.inputs.embeddings
    assert not tables.dynamic
    with pytest.raises(RunError, match=r"model\.id_tables 'hashed' -> 'dynamic'"):
        training.train(DATASET, config(), "2026-03-04", CPU, unlogged)


def test_numbers_are_standardised_by_the_newest_day(lake):
    training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    found = Scorer.load(load_run(DATASET.name, "tiny", DAYS[2]).path).ranker.inputs.scaler
    newest = SampleEncoder(DATASET).encode(random_samples(DATASET, 40, seed=1, ds=DAYS[1]))
    expected = NumberScaler(DATASET)
    expected.fit(newest)
    torch.testing.assert_close(found.state_dict(), expected.state_dict())
    constant = {group: torch.full_like(numbers, 3.0) for group, numbers in newest.numbers.items()}
    expected.fit(dataclasses.replace(newest, numbers=constant))  # what does not vary keeps its constants
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


@pytest.mark.parametrize("phase", ["train:checkpoint_saved", "train:before_publish"])
def test_a_killed_run_goes_on_with_the_same_losses(lake, monkeypatch, phase):
    training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    expected = load_run(DATASET.name, "tiny", DAYS[2])
    monkeypatch.setenv("MTGR_RUNS", str(lake / "killed"))

    class KilledError(Exception):
        pass

    def die(reached):
        if reached == phase:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(training, "reach", die)
        with pytest.raises(KilledError):
            training.train(DATASET, config(), DAYS[2], CPU, unlogged)
        assert complete_runs(DATASET.name, "tiny") == []
    add_day("2026-03-09", 9)  # the table moves on; the run goes on with the version it began with
    training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    found = load_run(DATASET.name, "tiny", DAYS[2])
    assert found.record["losses"] == expected.record["losses"]
    assert found.digest == expected.digest
    assert found.seen_days == expected.seen_days


def test_a_loss_that_is_not_finite_makes_no_run(lake):
    with pytest.raises(NonFiniteLossError, match=r"step 2026-03-0\d/0/\d+ \(day/pass/step\): loss"):
        training.train(DATASET, config(dense_lr=1e30), DAYS[2], CPU, unlogged)
    assert complete_runs(DATASET.name, "tiny") == []


def test_what_cannot_be_trained_is_refused_by_name(lake, monkeypatch):
    with pytest.raises(RunError, match=f"no samples of a day before {DAYS[0]}"):
        training.train(DATASET, config(), DAYS[0], CPU, unlogged)
    training.train(DATASET, config(), DAYS[1], CPU, unlogged)
    other = dataclasses.replace(config(), model=dataclasses.replace(config().model, d_model=32))
    with pytest.raises(RunError, match=r"another model than preset tiny has now \(model.d_model 16 -> 32\)"):
        training.train(DATASET, other, DAYS[2], CPU, unlogged)
    (load_run(DATASET.name, "tiny", DAYS[1]).path / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(RunError, match="is damaged"):
        training.train(DATASET, config(), DAYS[1], CPU, unlogged)
    monkeypatch.setenv("MTGR_LAKE", "/nowhere")
    with pytest.raises(SamplesUnavailableError, match="no samples table at /nowhere/foodlog/samples"):
        SamplesTable(DATASET)


def test_command_refuses_wrong_usage(caplog):
    assert command.main(["--dataset", "none", "--ds", DAYS[0]]) == 2
    assert command.main(["--dataset", "foodlog", "--ds", "2026-13-01"]) == 2
    assert command.main(["--dataset", "foodlog", "--ds", DAYS[0], "--preset", "huge"]) == 2


@pytest.mark.parametrize(
    ("seen", "days", "expected"),
    [
        ([["1"], ["1", "2"]], ["1", "2", "3"], 1),  # the newest
        ([["1"], ["1", "2"]], ["1", "2"], 1),  # nothing unseen
        ([["1"], ["1", "3"]], ["1", "2", "3"], 0),  # day 2 was repaired late: rewinds to before it
        ([["2"], ["2", "3"]], ["1", "2", "3"], None),  # the first day was repaired: from scratch
        ([["1"], ["1", "2"]], ["1"], 0),  # an older day again: nothing from after it
        ([["1", "2"]], ["2", "3"], 0),  # day 1 was deleted: what has seen it goes on
        ([["1", "2"]], ["1"], None),  # made for a later day
        ([], ["1"], None),
    ],
)
def test_base_of_the_canonical_chain(tmp_path, seen, days, expected):
    runs = [Run(path=tmp_path, record={"seen_days": dict.fromkeys(one, 0)}) for one in seen]
    found = base_of(runs, days, str(int(days[-1]) + 1), lambda _: True)
    assert found is (None if expected is None else runs[expected])


def test_evaluation_stands_beside_the_run(lake):
    training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    run = load_run(DATASET.name, "tiny", DAYS[2])
    evaluate(DATASET, [Contest(run=run)])
    written = json.loads((run.path / "evaluation.json").read_text())
    assert written["candidate"]["digest"] == run.digest
    assert written["champion"] is None
    assert written["samples_version"] == 2
    assert 0 < written["candidate"]["ctr_gauc"] < 1
    assert set(written["baselines"]) == {"item_mean"}
    assert {"ctr_gauc_request", "ctcvr_gauc_mean", "ctcvr_copc"} <= set(written["candidate"])
    scorer = Scorer.load(run.path)
    day = random_samples(DATASET, 40, seed=2, ds=DAYS[2])
    whole = scorer.score(day)
    part = scorer.score(day.slice(0, 3).to_pylist())
    for name in SCORES:
        np.testing.assert_allclose(part[name], whole[name][: len(part[name])], atol=1e-6)


def test_a_full_disk_and_a_lost_checkpoint_are_named(lake, monkeypatch):
    training.train(DATASET, config(), DAYS[1], CPU, unlogged)
    base = load_run(DATASET.name, "tiny", DAYS[1]).path
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(sharded, "save_file", full)
        with pytest.raises(RunError, match=r"cannot write .*rank_0.safetensors \(\d+ bytes are free there\)"):
            training.train(DATASET, config(), DAYS[2], CPU, unlogged)
    assert [run.path for run in complete_runs(DATASET.name, "tiny")] == [base]
    (base / "checkpoint" / "rank_0.safetensors").write_bytes(b"half")
    with pytest.raises(
        RunError, match=r"checkpoint cannot be read \(rank_0.safetensors has 4 bytes of \d+\); remove"
    ):
        training.train(DATASET, config(), DAYS[2], CPU, unlogged)


def on_gpu():
    """`tiny` in short steps, with the kernels of the device: `config` has the reference and head dim 8."""
    return dataclasses.replace(config(), model=tiny().model)


@pytest.mark.gpu
def test_a_gpu_trains_and_scores_as_the_cpu_does(lake, monkeypatch):
    training.train(DATASET, on_gpu(), DAYS[2], CPU, unlogged)
    expected = losses(DAYS[2])
    monkeypatch.setenv("MTGR_RUNS", str(lake / "gpu"))
    training.train(DATASET, on_gpu(), DAYS[2], torch.device("cuda", 0), unlogged)
    np.testing.assert_allclose(*([loss for _, loss in one] for one in (losses(DAYS[2]), expected)), rtol=1e-3)
    run, day = load_run(DATASET.name, "tiny", DAYS[2]), random_samples(DATASET, 40, seed=2, ds=DAYS[2])
    cpu, gpu = (Scorer.load(run.path, device).score(day) for device in ("cpu", "cuda"))
    for name in SCORES:
        np.testing.assert_allclose(gpu[name], cpu[name], atol=1e-5)


@pytest.mark.gpu
def test_a_run_killed_on_a_gpu_goes_on(lake, monkeypatch):
    gpu = torch.device("cuda", 0)
    training.train(DATASET, on_gpu(), DAYS[2], gpu, unlogged)
    expected = losses(DAYS[2])
    monkeypatch.setenv("MTGR_RUNS", str(lake / "killed"))
    with monkeypatch.context() as patch:

        def die(reached):
            if reached == "train:checkpoint_saved":
                raise KeyboardInterrupt

        patch.setattr(training, "reach", die)
        with pytest.raises(KeyboardInterrupt):
            training.train(DATASET, on_gpu(), DAYS[2], gpu, unlogged)
    training.train(DATASET, on_gpu(), DAYS[2], gpu, unlogged)
    np.testing.assert_allclose(*([loss for _, loss in one] for one in (losses(DAYS[2]), expected)), rtol=1e-5)


def on_rank(rank, world_size, folder, name, dies):
    """Trains on a GPU a rank; the last one is killed when a checkpoint is saved, if it is to die."""
    os.environ.update(MTGR_VAR=folder, MTGR_RUNS=f"{folder}/{name}")
    gpu = torch.device("cuda", rank)
    torch.cuda.set_device(gpu)
    store = dist.FileStore(f"{folder}/store_{name}_{dies}", world_size)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=world_size, device_id=gpu)
    if dies and rank == world_size - 1:

        def die(reached):
            if reached == "train:checkpoint_saved":
                os.kill(os.getpid(), signal.SIGKILL)

        training.reach = die
    training.train(DATASET, on_gpu(), DAYS[2], gpu, unlogged)
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_run_of_which_one_rank_is_killed_goes_on(lake, monkeypatch):
    world_size, of = torch.cuda.device_count(), {}
    for name, deaths in (("whole", (False,)), ("killed", (True, False))):
        for dies in deaths:
            with pytest.raises(mp.ProcessExitedException) if dies else contextlib.nullcontext():
                mp.spawn(on_rank, args=(world_size, str(lake), name, dies), nprocs=world_size)
        monkeypatch.setenv("MTGR_RUNS", str(lake / name))
        of[name] = [loss for _, loss in losses(DAYS[2])]
    np.testing.assert_allclose(of["killed"], of["whole"], rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["small", "medium", "large", "xl"])
def test_the_papers_presets_train_in_bfloat16(lake, preset):
    gpu, base = torch.device("cuda", 0), preset_named(preset)
    config = dataclasses.replace(base, train=dataclasses.replace(base.train, warmup_steps=2))
    table = random_samples(DATASET, 64, max_static=300, max_realtime=40, max_candidates=30)
    rows = SampleEncoder(DATASET).encode(table)
    step = Step(
        name="0",
        batch=rows,
        num_candidates=rows.num_candidates,
        weight=rows.num_candidates,
        num_tokens=0,
        row_hash=torch.ones(64),
    )
    with process_group(gpu):
        trainer = Trainer(DATASET, config, gpu)
        trainer.scaler.fit(rows.to(gpu))
        for _ in range(20):
            trainer.step(step)
        found = [loss for _, loss in trainer.losses()]
        published = trainer.published(saved(trainer, lake / "checkpoint"))
    assert found[-1] < 0.9 * found[0]
    ranker = build_ranker(DATASET, config.model, config.train.seed)
    ranker.load_state_dict(published)
    # In float32: bfloat16, in which it is served, is rounded otherwise on every device.
    exact = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))
    scorers = [Scorer(DATASET, exact, copy.deepcopy(ranker), device) for device in ("cpu", "cuda")]
    cpu, on_device = (scorer.score(table.slice(0, 8)) for scorer in scorers)
    for name in SCORES:
        np.testing.assert_allclose(on_device[name], cpu[name], atol=1e-4)
