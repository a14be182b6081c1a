"""The collection of dynamic tables beside TorchRec's, and spread over processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hstu_ops
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.embeddings.exchange import Exchange
from model.embeddings.mixing import initial_vectors, owner_of
from model.embeddings.rules import Keeping, RowOptimizer, TableFullError
from model.embeddings.table_state import joined
from tests.model.ranks import on_ranks

WIDTH = 4
CONFIGS = [
    EmbeddingConfig(name="user", num_embeddings=50, embedding_dim=WIDTH, feature_names=["user"]),
    EmbeddingConfig(name="item", num_embeddings=50, embedding_dim=WIDTH, feature_names=["seen", "shown"]),
]
SGD = RowOptimizer(name="sgd", lr=0.1)


def collection(**more) -> DynamicEmbeddingCollection:
    return DynamicEmbeddingCollection(CONFIGS, seed=3, **more)


def features(seed: int = 0, high: int = 50) -> KeyedJaggedTensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (15,), generator=generator)  # three keys of five rows
    values = torch.randint(0, high, (int(lengths.sum()),), generator=generator)
    return KeyedJaggedTensor(keys=["shown", "user", "seen"], values=values, lengths=lengths)


def loss_of(out) -> torch.Tensor:
    return sum((k + 1) * out[key].values().square().sum() for k, key in enumerate(sorted(out)))


def test_it_is_torchrecs_collection():
    """Same ids, same initial vectors, same gradients: the same vectors, lengths and rows after a step."""
    theirs, ours = EmbeddingCollection(tables=CONFIGS), collection()
    with torch.no_grad():
        for number, config in enumerate(CONFIGS):
            values = initial_vectors(torch.arange(50), number, WIDTH, 3, torch.float32)
            theirs.embeddings[config.name].weight.copy_(values)
    ours.train_rows(SGD)
    assert ours.embedding_configs() == theirs.embedding_configs()
    assert ours.embedding_dim() == theirs.embedding_dim()
    assert ours.embedding_names_by_table() == theirs.embedding_names_by_table()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for seed in range(5):
        batch = features(seed)
        expected, got = theirs(batch), ours(batch)
        assert expected.keys() == got.keys()
        for key in expected:
            torch.testing.assert_close(got[key].values(), expected[key].values(), rtol=1e-6, atol=1e-6)
            assert torch.equal(got[key].lengths(), expected[key].lengths())
            assert torch.equal(got[key].offsets(), expected[key].offsets())
        optimizer.zero_grad()
        for out in (expected, got):
            loss_of(out).backward()
        optimizer.step()


def trained() -> tuple[DynamicEmbeddingCollection, list[KeyedJaggedTensor]]:
    tables = collection()
    tables.train_rows(SGD)
    batches = [features(seed, 2**62) for seed in range(3)]
    for batch in batches:
        sum(v.values().square().sum() for v in tables(batch).values()).backward()
    return tables, batches


def test_the_sorted_form_scores_the_same_through_safetensors():
    tables, batches = trained()
    scoring = collection().eval()
    scoring.load_state_dict(load(save(tables.state_dict())))
    for batch in [*batches, features(9, 2**62)]:  # the last is of ids that were never seen
        with torch.no_grad():
            expected = tables.eval()(batch)
        for key, got in scoring(batch).items():
            assert torch.equal(got.values(), expected[key].values())
    known = len(tables.live)
    assert known == len(scoring.ids)
    assert scoring.starts.tolist()[-1] == known
    assert not list(scoring.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_an_unknown_id_has_the_vector_that_it_begins_with(monkeypatch, is_compiled, dtype):
    """By the compiled kernel and without it, beside ids that are known, and in a table without any."""
    monkeypatch.setattr(hstu_ops.libraries, "loaded", lambda part: is_compiled)
    tables = collection(dtype=dtype)
    tables.ids, tables.starts = torch.tensor([-5, 7, 2**62]), torch.tensor([0, 0, 3])
    tables.vectors = torch.arange(12, dtype=dtype).view(3, WIDTH)
    asked = torch.tensor([7, 8, -(2**63), 7, -5, 9, 2**63 - 1, 2**62])
    vectors = tables.lookup(asked, [3, 5], [0, 1])
    expected = torch.cat(
        [initial_vectors(part, k, WIDTH, 3, dtype) for k, part in enumerate((asked[:3], asked[3:]))]
    )
    expected[[3, 4, 7]] = tables.vectors[[1, 0, 2]]
    assert torch.equal(vectors, expected)


def test_only_training_adds_ids():
    tables = collection()
    tables.train_rows(SGD)
    with torch.no_grad():
        tables(features())
    tables.eval()(features())
    assert len(tables.live) == 0


def test_learning_goes_on_from_the_sorted_form():
    tables, batches = trained()
    again = collection()
    again.load_state_dict(tables.state_dict())
    again.train_rows(SGD)  # SGD has no state that the sorted form would lack
    for batch in batches:
        outs = [t.train()(batch) for t in (tables, again)]
        for out in outs:
            sum(v.values().sum() for v in out.values()).backward()
        for key in outs[0]:
            assert torch.equal(outs[0][key].values(), outs[1][key].values())
    assert all(torch.equal(part, again.published()[name]) for name, part in tables.published().items())


def test_evicted_rows_are_handed_out_by_table():
    gone = []
    tables = collection()
    tables.train_rows(SGD, Keeping(ttl_days=1), on_evicted=gone.append)
    tables.start_day(1)
    batch = features()
    sum(v.values().sum() for v in tables(batch).values()).backward()
    tables.start_day(7)
    user, item = (set(batch[key].values().tolist()) for key in ("user", "seen"))
    item |= set(batch["shown"].values().tolist())
    assert gone[0].tables.tolist() == [0] * len(user) + [1] * len(item)
    assert gone[0].ids.tolist() == [*sorted(user), *sorted(item)]


def test_what_cannot_be_is_refused():
    wide = EmbeddingConfig(name="w", num_embeddings=2, embedding_dim=8, feature_names=["w"])
    with pytest.raises(ValueError, match=r"widths \[4, 8\]"):
        DynamicEmbeddingCollection([*CONFIGS, wide], seed=1)
    other = KeyedJaggedTensor(keys=["who"], values=torch.tensor([1]), lengths=torch.tensor([1]))
    with pytest.raises(ValueError, match="no table has the feature 'who'; known: user, seen, shown"):
        collection()(other)
    with pytest.raises(RuntimeError, match="has 1 tables of width 8, the state 2 and vectors"):
        DynamicEmbeddingCollection([wide], seed=1).load_state_dict(collection().state_dict())
    with pytest.raises(RuntimeError, match="is loaded by load_states"):
        trained()[0].load_state_dict(collection().state_dict())


def steps_of_rank(rank: int, num_ranks: int) -> list[KeyedJaggedTensor]:
    """Batches of 4 rows, of which each rank has its share."""
    batches = []
    for seed in range(4):
        parts = [features(4 * seed + row, 30) for row in range(rank, 4, num_ranks)]
        values = {key: torch.cat([part[key].values() for part in parts]) for key in ("shown", "user", "seen")}
        lengths = torch.cat([torch.cat([part[key].lengths() for part in parts]) for key in values])
        batches.append(
            KeyedJaggedTensor(keys=list(values), values=torch.cat(list(values.values())), lengths=lengths)
        )
    return batches


def learn(tables: DynamicEmbeddingCollection, batches, num_ranks: int, first: int = 0) -> None:
    for step, batch in enumerate(batches, first):
        tables.start_day(step)
        (loss_of(tables(batch)) * num_ranks).backward()


def gathered(tables: DynamicEmbeddingCollection) -> list[dict[str, torch.Tensor]]:
    """The states of all ranks."""
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, tables.state())
    return states


def taken_up(tables: DynamicEmbeddingCollection, states: list[dict[str, torch.Tensor]]) -> None:
    tables.load_states(states[rank] for rank in tables.sources(len(states)))


def of_rank(folder: Path) -> None:
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    tables = collection()
    tables.train_rows(RowOptimizer(name="adagrad", lr=0.1), Keeping(ttl_days=2), group=dist.group.WORLD)
    batches = steps_of_rank(rank, num_ranks)
    learn(tables, batches[:2], num_ranks)
    own = tables.live.state()
    for table in (0, 1):
        ids = own["ids"][own["tables"] == table]
        assert (owner_of(ids, table, num_ranks) == rank).all()
    states = gathered(tables)
    tables = collection()
    tables.train_rows(RowOptimizer(name="adagrad", lr=0.1), Keeping(ttl_days=2), group=dist.group.WORLD)
    taken_up(tables, [joined(states)])  # of one: every rank takes its part
    learn(tables, batches[2:], num_ranks, 2)
    states = gathered(tables)
    with torch.no_grad():
        seen = tables.eval()(features(77, 60))  # every rank asks for the same, known and unknown
    if rank == 0:
        torch.save({"states": states, "seen": {k: v.values() for k, v in seen.items()}}, folder / "out.pt")


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_together_are_one_process(num_ranks, tmp_path):
    on_ranks(num_ranks, of_rank, tmp_path)
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    state = joined(out["states"])
    alone = collection()
    alone.train_rows(RowOptimizer(name="adagrad", lr=0.1), Keeping(ttl_days=2))
    learn(alone, steps_of_rank(0, 1), 1)
    expected = alone.state()
    for name in ("ids", "tables", "seen", "steps", "days"):
        assert torch.equal(state[name], expected[name]), name
    for name in ("vectors", "optimizer_0"):
        torch.testing.assert_close(state[name], expected[name], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for key, jagged in alone.eval()(features(77, 60)).items():
            torch.testing.assert_close(out["seen"][key], jagged.values(), rtol=1e-5, atol=1e-6)
    resumed = collection()
    resumed.train_rows(RowOptimizer(name="adagrad", lr=0.1), Keeping(ttl_days=2))
    taken_up(resumed, out["states"])  # of many: one takes all
    assert all(torch.equal(resumed.state()[name], value) for name, value in state.items())


def test_a_rank_reads_the_parts_that_may_have_its_keys_and_no_others():
    """Whatever number of ranks wrote: exactly the remainders that occur together with this rank's."""
    hashes = range(4096)
    for num_ranks in range(2, 9):
        for num_saved in range(1, 9):
            for rank in range(num_ranks):
                exchange = SimpleNamespace(rank=rank, num_ranks=num_ranks)
                expected = {h % num_saved for h in hashes if h % num_ranks == rank}
                assert Exchange.sources(exchange, num_saved) == sorted(expected)


LIMITED = Keeping(max_rows=91, eviction="lru")


def of_limited_rank(folder: Path) -> None:
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    with pytest.raises(ValueError, match="max_rows is 1 for 2 ranks; use at least a row for each"):
        collection().train_rows(SGD, Keeping(max_rows=1), group=dist.group.WORLD)
    whole, resumed = collection(), collection()
    whole.train_rows(SGD, LIMITED, group=dist.group.WORLD)
    batches = [features(step * num_ranks + rank, 200) for step in range(12)]
    learn(whole, batches[:8], num_ranks)
    assert 30 <= len(whole.live) <= 45
    resumed.train_rows(SGD, LIMITED, group=dist.group.WORLD)
    taken_up(resumed, gathered(whole))
    for tables in (whole, resumed):
        learn(tables, batches[8:], num_ranks, 8)
        assert 30 <= len(tables.live) <= 45
    states = [tables.state() for tables in (whole, resumed)]
    assert all(torch.equal(part, states[1][name]) for name, part in states[0].items())
    both = gathered(whole)
    full = collection()
    full.train_rows(SGD, Keeping(max_rows=45), group=dist.group.WORLD)
    wanted = (
        r"for user \(0\), item \(0\) has 0 rows of at most 22 \(max_rows 45 over 2 ranks\) and \d+ new ids"
    )
    ids = torch.arange(100)
    with pytest.raises(TableFullError, match=wanted):
        full.lookup(ids, [100], [1])
    if rank == 0:
        torch.save(joined(both), folder / "out.pt")


def test_ranks_share_a_limit_and_resume_is_exact(tmp_path):
    on_ranks(2, of_limited_rank, tmp_path)
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert 60 <= len(state["ids"]) <= 90
    alone = collection()
    alone.train_rows(SGD, Keeping(max_rows=45, eviction="lru"))
    alone.load_states([state])  # of another limit, which holds from the next step on
    learn(alone, [features(99, 200)], 1, 12)
    assert 20 <= len(alone.live) <= 45
