"""The dynamic hash table against a dictionary and dense optimizers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.encoder import mix64 as numpy_mix64
from model.embeddings import memory as m
from model.embeddings.hash_table import HashTable
from model.embeddings.mixing import initial_vectors, mix64
from model.embeddings.rules import Keeping, RowOptimizer, TableFullError

ADAGRAD = RowOptimizer(name="adagrad", lr=0.1)
SGD = RowOptimizer(name="sgd", lr=0.5)
EXTREMES = [-1, 0, 1, 2**63 - 1, -(2**63), 2**32, -(2**32)]
WIDTH = 6


def table_of(optimizer=ADAGRAD, width=WIDTH, **more) -> HashTable:
    return HashTable(width, optimizer=optimizer, seed=7, **more)


def look(table: HashTable, ids, number=0) -> torch.Tensor:
    ids = torch.as_tensor(ids, dtype=torch.int64)
    slices = (ids, [len(ids)], [number])
    return table.vectors(table.find(*slices), *slices)


def learn(table: HashTable, ids, grad, number=0) -> torch.Tensor:
    ids = torch.as_tensor(ids, dtype=torch.int64)
    rows = table.insert(ids, [len(ids)], [number])
    table.update(rows, grad)
    return rows


def held(table: HashTable) -> dict[tuple[int, int], torch.Tensor]:
    state = table.state()
    keys = zip(state["tables"].tolist(), state["ids"].tolist(), strict=True)
    return dict(zip(keys, state["vectors"], strict=True))


def equal_states(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_hash_is_the_encoders():
    ids = np.array([*EXTREMES, *np.random.default_rng(1).integers(-(2**63), 2**63, 500)])
    assert np.array_equal(mix64(torch.from_numpy(ids)).numpy(), numpy_mix64(ids).view(np.int64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ids_begin_with_a_vector_of_their_own(dtype):
    ids = torch.cat([torch.tensor(EXTREMES), torch.randint(-(2**63), 2**63 - 1, (5000,))])
    table = table_of(width=33, dtype=dtype)
    before = look(table, ids, 3)
    assert torch.equal(before, initial_vectors(ids, 3, 33, 7, dtype))  # kernels and tensors agree to the bit
    assert not len(table)
    table.insert(ids, [len(ids)], [3])
    assert torch.equal(look(table, ids, 3), before)
    assert not torch.equal(look(table, ids, 2), before)
    assert abs(float(before.float().var()) * 33 - 1) < 0.03
    assert abs(float(before.float().mean())) < 0.003


def test_any_integer_is_an_id_and_tables_are_apart():
    table = table_of(SGD)
    ids = torch.tensor(EXTREMES * 2)
    ends, tables = [len(EXTREMES), 2 * len(EXTREMES)], [0, 65535]
    rows = table.insert(ids, ends, tables)
    assert sorted(rows.tolist()) == list(range(2 * len(EXTREMES)))
    before = table.vectors(rows, ids, ends, tables)
    table.update(rows[: len(EXTREMES)], torch.ones(len(EXTREMES), WIDTH))
    assert torch.equal(look(table, EXTREMES, 65535), before[len(EXTREMES) :])
    torch.testing.assert_close(look(table, EXTREMES, 0), before[: len(EXTREMES)] - 0.5)


def test_no_two_ids_share_a_row():
    table = table_of(SGD, width=1)
    for start in range(0, 300_000, 50_000):
        ids = torch.arange(start, start + 50_000) * 4096  # low bits alike
        table.insert(ids, [len(ids)], [0])
    ids = torch.arange(300_000) * 4096
    rows = table.find(ids, [len(ids)], [0])
    assert len(rows.unique()) == 300_000 == len(table)
    assert int(rows.min()) == 0
    assert (table.find(ids + 1, [len(ids)], [0]) == -1).all()


def test_growth_copies_no_vector():
    table = table_of(SGD, width=2)
    table.insert(torch.arange(100), [100], [0])
    addresses = table.memory.addresses[m.VECTORS].clone()
    first = look(table, range(100))
    ids = torch.arange(200_000)
    table.insert(ids, [len(ids)], [0])
    used = addresses != 0
    assert torch.equal(table.memory.addresses[m.VECTORS][used], addresses[used])
    assert int((table.memory.addresses[m.VECTORS] != 0).sum()) > int(used.sum())
    assert torch.equal(look(table, range(100)), first)


class DenseRows:
    """Rows by key in float64, with an optimizer written out."""

    def __init__(self, optimizer: RowOptimizer) -> None:
        self.optimizer, self.rows, self.state, self.steps = optimizer, {}, {}, 0

    def learn(self, keys, grad) -> None:
        self.steps += 1
        sums: dict = {}
        for key, g in zip(keys, grad.double().numpy(), strict=True):
            sums[key] = sums.get(key, 0.0) + g
        o = self.optimizer
        for (number, key), g in sums.items():
            at = (number, key)
            w = self.rows.setdefault(
                at, initial_vectors(torch.tensor([key]), number, len(g), 7, torch.float32)[0].double().numpy()
            )
            if o.name == "sgd":
                w = w - o.lr * g
            elif o.name == "adagrad":
                self.state[at] = self.state.get(at, 0.0) + (g * g).mean()
                w = w - o.lr * g / (np.sqrt(self.state[at]) + o.eps)
            else:
                first, second = self.state.get(at, (0.0, 0.0))
                first, second = o.beta1 * first + (1 - o.beta1) * g, o.beta2 * second + (1 - o.beta2) * g * g
                self.state[at] = (first, second)
                rate = o.lr * np.sqrt(1 - o.beta2**self.steps) / (1 - o.beta1**self.steps)
                w = w - rate * first / (np.sqrt(second) + o.eps)
            self.rows[at] = w


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("width", [1, 7, 128])
def test_optimizers_equal_dense_ones(name, width):
    optimizer = RowOptimizer(name=name, lr=0.05)
    table, dense = table_of(optimizer, width), DenseRows(optimizer)
    generator = torch.Generator().manual_seed(3)
    for _ in range(12):
        ids = torch.randint(0, 40, (300,), generator=generator) ** 3
        grad = torch.randn(300, width, generator=generator)
        learn(table, ids, grad, number=2)
        dense.learn([(2, key) for key in ids.tolist()], grad)
    for key, vector in held(table).items():
        np.testing.assert_allclose(vector.numpy(), dense.rows[key], rtol=1e-6, atol=1e-6)


def test_adam_is_torchs_sparse_adam_and_adagrad_torchrecs():
    from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

    """Gradients near zero among them: where eps stands in the quotient shows in them alone."""
    ids, steps = torch.arange(50), 10
    generator = torch.Generator().manual_seed(2)
    for name, make in (("adam", torch.optim.SparseAdam), ("adagrad", RowWiseAdagrad)):
        table = table_of(RowOptimizer(name=name, lr=0.03, eps=1e-8))
        dense = torch.nn.Embedding(50, WIDTH, sparse=name == "adam")
        with torch.no_grad():
            dense.weight.copy_(initial_vectors(ids, 0, WIDTH, 7, torch.float32))
        optimizer = make(dense.parameters(), lr=0.03, eps=1e-8)
        for step in range(steps):
            chosen = ids if name == "adagrad" else ids[step::3]
            grad = torch.randn(len(chosen), WIDTH, generator=generator)
            grad[:, 0] *= 1e-6
            learn(table, chosen, grad)
            optimizer.zero_grad()
            dense(chosen).backward(grad)
            optimizer.step()
        torch.testing.assert_close(look(table, ids), dense.weight.detach(), rtol=1e-6, atol=1e-6)


def test_bfloat16_rows_take_small_steps_in_the_mean():
    table = table_of(RowOptimizer(name="sgd", lr=1.0), width=64, dtype=torch.bfloat16)
    ids = torch.arange(200)
    before = look(table, ids).float()
    for _ in range(64):
        learn(table, ids, torch.full((200, 64), 1e-4))  # half a rounding step of most values, or less
    moved = float((before - look(table, ids).float()).mean())
    assert moved == pytest.approx(64e-4, rel=0.05)


def test_results_do_not_depend_on_threads():
    states = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        table = table_of(RowOptimizer(name="adam", lr=0.05), 16)
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            ids = torch.randint(0, 3000, (20_000,), generator=generator)
            learn(table, ids, torch.randn(20_000, 16, generator=generator))
        states.append(table.state())
    torch.set_num_threads(threads)
    equal_states(*states)


def test_ttl_counts_days_of_data():
    gone = []
    table = table_of(keeping=Keeping(ttl_days=2), on_evicted=gone.append)
    one = torch.ones(1, WIDTH)
    for day, key in ((10, 1), (11, 2), (12, 3)):
        assert table.start_day(day) == 0
        learn(table, [key], one)
    learn(table, [1], one)  # seen again
    assert table.start_day(14) == 1
    assert [(e.reason, e.ids.tolist(), e.tables.tolist(), e.counts.tolist()) for e in gone] == [
        ("ttl", [2], [0], [1])
    ]
    assert sorted(key for _, key in held(table)) == [1, 3]
    assert table.start_day(15) == 2
    assert torch.equal(look(table, [2]), initial_vectors(torch.tensor([2]), 0, WIDTH, 7, torch.float32))
    with pytest.raises(ValueError, match="day 14 of data after day 15"):
        table.start_day(14)


def test_an_evicted_id_comes_back_without_what_it_knew():
    table = table_of(keeping=Keeping(ttl_days=1))
    table.start_day(1)
    learn(table, [5, 6], torch.ones(2, WIDTH))
    table.start_day(9)
    rows = learn(table, [6], torch.ones(1, WIDTH))
    assert rows.tolist() == [0]  # a row that was freed is taken again
    fresh = table_of()
    learn(fresh, [6], torch.ones(1, WIDTH))
    assert torch.equal(look(table, [6]), look(fresh, [6]))


@pytest.mark.parametrize(("eviction", "goes"), [("lru", [1, 2]), ("lfu", [3, 4])])
def test_a_full_table_evicts(eviction, goes):
    gone = []
    table = table_of(keeping=Keeping(max_rows=4, eviction=eviction), on_evicted=gone.append)
    for ids in ([1, 1, 1], [2, 2, 2], [3], [4]):
        learn(table, ids, torch.ones(len(ids), WIDTH))
    learn(table, [5, 6], torch.ones(2, WIDTH))
    assert [(e.reason, e.ids.tolist()) for e in gone] == [(eviction, goes)]
    assert sorted(key for _, key in held(table)) == sorted({1, 2, 3, 4, 5, 6} - set(goes))
    with pytest.raises(TableFullError, match="5 new ids come in one step"):
        table.insert(torch.arange(100, 105), [5], [0])


def test_ids_of_the_step_are_not_evicted_by_it():
    table = table_of(keeping=Keeping(max_rows=3, eviction="lru"))
    for key in (1, 2, 3):
        learn(table, [key], torch.ones(1, WIDTH))
    learn(table, [1, 4], torch.ones(2, WIDTH))
    assert sorted(key for _, key in held(table)) == [1, 3, 4]
    with pytest.raises(TableFullError, match="needs 1 rows more"):
        table.insert(torch.tensor([1, 3, 4, 5]), [4], [0])


def test_a_full_table_without_eviction_is_an_error():
    table = table_of(keeping=Keeping(max_rows=3))
    learn(table, [1, 2, 3, 3], torch.ones(4, WIDTH))
    learn(table, [1, 2, 3], torch.ones(3, WIDTH))  # nobody new
    before = table.state()
    with pytest.raises(TableFullError, match="has 3 rows of at most 3 and 1 new ids"):
        table.insert(torch.tensor([3, 9]), [2], [0])
    equal_states(table.state(), before)


def test_admission_by_frequency():
    keeping = Keeping(admission=3, ttl_days=5)
    table = table_of(SGD, keeping=keeping)
    table.start_day(1)
    begin = initial_vectors(torch.tensor([8, 9]), 0, WIDTH, 7, torch.float32)
    rows = learn(table, [8, 9, 8], torch.ones(3, WIDTH))
    assert (rows < 0).all()
    assert torch.equal(look(table, [8, 9]), begin)  # they learn nothing yet
    assert table.find(torch.tensor([8, 9, 7]), [3], [0]).tolist() == [-3, -2, -1]
    other = table_of(SGD, keeping=keeping)
    other.load(table.state())
    for resumed in (table, other):
        rows = learn(resumed, [8, 9], torch.ones(2, WIDTH))
        assert rows[0] >= 0 > rows[1]
        torch.testing.assert_close(look(resumed, [8, 9]), begin - torch.tensor([[0.5], [0.0]]))
        assert resumed.find(torch.tensor([9]), [1], [0]).tolist() == [-3]
    equal_states(table.state(), other.state())


def test_who_waits_too_long_is_forgotten():
    table = table_of(SGD, keeping=Keeping(admission=3, ttl_days=2))
    table.start_day(1)
    learn(table, [8, 8], torch.ones(2, WIDTH))
    table.start_day(3)
    learn(table, [9], torch.ones(1, WIDTH))
    table.start_day(4)
    assert table.find(torch.tensor([8, 9]), [2], [0]).tolist() == [-1, -2]
    assert table.state()["waiting_ids"].tolist() == [9]


def test_delete():
    gone = []
    table = table_of(on_evicted=gone.append)
    learn(table, [1, 2, 3], torch.ones(3, WIDTH))
    learn(table, [2], torch.ones(1, WIDTH), number=1)
    assert table.delete(torch.tensor([2, 7, 2]), 0) == 1
    assert set(held(table)) == {(0, 1), (0, 3), (1, 2)}
    assert [(e.reason, e.ids.tolist()) for e in gone] == [("deleted", [2])]


def test_state_of_another_width_is_refused():
    state = table_of().state()
    with pytest.raises(ValueError, match=r"vectors are \(0, 6\), this table's have width 4"):
        table_of(width=4).load(state)
    with pytest.raises(ValueError, match=r"optimizer_0 are \(0, 1\), this table's have width 6"):
        table_of(RowOptimizer(name="adam", lr=0.1)).load(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"admission": 0}, "at least once"),
        ({"admission": 2}, "keep ids that wait for ever"),
        ({"eviction": "fifo"}, "use one of none, lru, lfu"),
        ({"eviction": "lru"}, "without max_rows"),
        ({"max_rows": 0}, "at least one row"),
        ({"ttl_days": 0}, "use 1 to 8191"),
    ],
)
def test_rules_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Keeping(**settings)


KEYS = st.sampled_from([*EXTREMES, *range(2, 40)])
STEP = st.one_of(
    st.tuples(st.just("learn"), st.lists(st.tuples(st.integers(0, 2), KEYS), max_size=60)),
    st.tuples(st.just("delete"), st.tuples(st.integers(0, 2), st.lists(KEYS, max_size=10))),
    st.tuples(st.just("day"), st.integers(0, 3)),
    st.tuples(st.just("resume"), st.none()),
    st.tuples(st.just("flood"), st.integers(0, 5)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, max_size=12), seed=st.integers(0, 99))
def test_any_sequence_is_a_dictionarys(steps, seed):
    """Learn, delete, expire, resume and grow in any order: the same keys, vectors, counts and times."""
    optimizer = RowOptimizer(name="adagrad", lr=0.1)
    keeping = Keeping(ttl_days=2)
    table, dense = table_of(optimizer, keeping=keeping), DenseRows(optimizer)
    counts: dict = {}
    days: dict = {}
    day = 100
    table.start_day(day)
    generator = torch.Generator().manual_seed(seed)
    for kind, what in steps:
        if kind in ("learn", "flood"):
            keys = what if kind == "learn" else [(0, 1000 * what + k) for k in range(700)]
            keys = sorted(keys, key=lambda key: key[0])
            numbers = [number for number, _ in keys]
            ids = torch.tensor([key for _, key in keys], dtype=torch.int64)
            ends = [sum(number <= k for number in numbers) for k in range(3)]
            grad = torch.randn(len(keys), WIDTH, generator=generator)
            table.update(table.insert(ids, ends, [0, 1, 2]), grad)
            dense.learn(keys, grad)
            for key in keys:
                counts[key] = counts.get(key, 0) + 1
                days[key] = day
        elif kind == "delete":
            number, ids = what
            gone = {(number, key) for key in ids} & dense.rows.keys()
            assert table.delete(torch.tensor(ids, dtype=torch.int64), number) == len(gone)
        elif kind == "day":
            day += what
            gone = {key for key in dense.rows if days[key] < day - 2}
            assert table.start_day(day) == len(gone)
        else:
            state, gone = table.state(), set()
            table = table_of(optimizer, keeping=keeping)
            table.load(state)
            equal_states(table.state(), state)
        for key in gone if kind in ("delete", "day") else ():
            del dense.rows[key], counts[key]
            dense.state.pop(key)
        assert len(table) == len(dense.rows)
    state = table.state()
    keys = list(zip(state["tables"].tolist(), state["ids"].tolist(), strict=True))
    assert keys == sorted(dense.rows)
    assert dict(zip(keys, state["counts"].tolist(), strict=True)) == counts
    for key, vector in zip(keys, state["vectors"], strict=True):
        np.testing.assert_allclose(vector.numpy(), dense.rows[key], rtol=2e-6, atol=2e-6)


def test_resume_is_exact():
    keeping = Keeping(admission=2, ttl_days=3, max_rows=300, eviction="lfu")
    whole = table_of(RowOptimizer(name="adam", lr=0.05), keeping=keeping)
    resumed = whole
    generator = torch.Generator().manual_seed(11)
    for step in range(40):
        ids = torch.randint(0, 200 + 12 * step, (80,), generator=generator)
        grad = torch.randn(80, WIDTH, generator=generator)
        for table in {id(t): t for t in (whole, resumed)}.values():
            if step % 10 == 0:
                table.start_day(step // 10)
            learn(table, ids, grad)
        if step % 7 == 3:
            resumed_from = resumed.state()
            resumed = table_of(RowOptimizer(name="adam", lr=0.05), keeping=keeping)
            resumed.load(resumed_from)
    assert len(whole) > 200
    equal_states(whole.state(), resumed.state())


def apart(seed: int, width: int, optimizer: RowOptimizer, **more) -> tuple[HashTable, HashTable]:
    """The same training of a table on the CPU and one on the GPU."""
    pair = table_of(optimizer, width, **more), table_of(optimizer, width, device="cuda", **more)
    generator = torch.Generator().manual_seed(seed)
    for step in range(20):
        # Log-uniform: id 1 stands on a quarter of all positions, most ids once.
        ids = (torch.rand(30_000, generator=generator) * 11).exp().long() * 2**40 - step % 3
        cut = int(torch.randint(0, 30_000, (1,), generator=generator))
        slices = ([cut, cut, 30_000], [1, 5, 0])
        grad = torch.randn(30_000, width, generator=generator)
        for table in pair:
            if step % 5 == 0:
                table.start_day(step)
            here = ids.to(table.device)
            rows = table.insert(here, *slices)
            assert ((rows < 0) | (table.memory.read(m.IDS, rows.long().clamp(min=0)) == here)).all()
            before = table.vectors(rows, here, *slices)
            table.update(rows, grad.to(table.device))
            if step == 11:
                table.delete(here[:500], 1)
        assert before.isfinite().all()
    return pair


@pytest.mark.gpu
@pytest.mark.parametrize("width", [1, 7, 8, 32, 100, 128, 256, 512])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_gpu_equals_cpu(name, width):
    optimizer = RowOptimizer(
        name=name, lr=0.01, eps=1e-3
    )  # Adam would blow up what is left of a sum that is 0
    here, there = (table.state() for table in apart(1, width, optimizer, keeping=Keeping(ttl_days=7)))
    for key in here:
        if here[key].is_floating_point():
            torch.testing.assert_close(there[key], here[key], rtol=2e-5, atol=2e-5)
        else:
            assert torch.equal(there[key], here[key]), key


@pytest.mark.gpu
@pytest.mark.parametrize(
    "keeping",
    [
        Keeping(admission=3, ttl_days=7),
        Keeping(max_rows=40_000, eviction="lru"),
        Keeping(max_rows=40_000, eviction="lfu"),
        Keeping(admission=2, ttl_days=7, max_rows=20_000, eviction="lru"),
    ],
)
def test_gpu_keeps_the_keys_of_the_cpu(keeping):
    here, there = (table.state() for table in apart(2, 16, SGD, keeping=keeping))
    for key in here:
        if not here[key].is_floating_point():
            assert torch.equal(there[key], here[key]), key


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_begins_as_the_cpu_and_loads_its_state(dtype):
    ids = torch.cat([torch.tensor(EXTREMES), torch.randint(-(2**63), 2**63 - 1, (5000,))])
    pair = [table_of(SGD, 20, dtype=dtype, device=device) for device in ("cpu", "cuda")]
    for table in pair:
        here = ids.to(table.device)
        assert torch.equal(look(table, here).cpu(), initial_vectors(ids, 0, 20, 7, dtype))
        learn(table, here, torch.ones(len(ids), 20, device=table.device))
    equal_states(pair[0].state(), pair[1].state())  # bfloat16 is rounded by the same odds
    again = table_of(SGD, 20, dtype=dtype, device="cuda")
    again.load(pair[0].state())
    equal_states(again.state(), pair[0].state())


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu():
    table = table_of(RowOptimizer(name="adam", lr=0.01), 64, device="cuda")
    batches = [torch.randint(0, 10**6, (50_000,), device="cuda") + 10**5 * k for k in range(20)]
    grad = torch.randn(50_000, 64, device="cuda")
    table.insert(batches[0], [50_000], [0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for ids in batches:  # new ids come in and the table grows all the while
            rows = table.insert(ids, [20_000, 50_000], [0, 1])
            table.vectors(rows, ids, [20_000, 50_000], [0, 1])
            table.update(rows, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    first = torch.cat([batches[0], *(ids[:20_000] for ids in batches)])
    second = torch.cat([ids[20_000:] for ids in batches])
    assert len(table) == len(first.unique()) + len(second.unique())
