"""Hypothesis over row lengths and masks: every backend against the reference, and what a mask must keep."""

import pytest
import torch
from hstu_ops import mtgr_attention

from benchmarks.shapes import Jagged
from tests.cuda_ext.operator_cases import check_attention

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

length = st.sampled_from([0, 0, 1, 2, 31, 63, 64, 65])
counts = st.lists(st.tuples(length, length, length), max_size=4)


@settings(max_examples=15, deadline=None)
@given(
    counts=counts,
    seed=st.integers(0, 2**31),
    num_heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 8, 20]),
)
def test_cpu_backend_on_random_rows(counts, seed, num_heads, head_dim):
    static, realtime, candidates = ([row[n] for row in counts] for n in range(3))
    rows = Jagged.random(static=static, realtime=realtime, candidates=candidates, seed=seed)
    check_attention("cpu", rows, num_heads, head_dim, torch.float32)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 140), max_size=4), seed=st.integers(0, 2**31))
def test_cpu_backend_on_any_mask(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    end = [torch.randint(0, n + 1, (n,), generator=generator) for n in lengths]
    visible_end = torch.cat([*end, torch.zeros(0, dtype=torch.int64)]).int()
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    check_attention(
        "cpu", Jagged(offsets=offsets, visible_end=visible_end, group=visible_end), 1, 8, torch.float32
    )


@settings(max_examples=10, deadline=None)
@given(counts=counts.filter(lambda rows: any(row[2] for row in rows)), seed=st.integers(0, 2**31))
def test_a_candidate_changes_no_other_token(counts, seed):
    static, realtime, candidates = ([row[n] for row in counts] for n in range(3))
    rows = Jagged.random(static=static, realtime=realtime, candidates=candidates, seed=seed)
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, rows.num_tokens, 1, 8).unbind(0)
    candidate = int((rows.group == 3).nonzero()[0])

    def run(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return mtgr_attention(q, k, v, rows.offsets, rows.visible_end, 0.3, 0.1, backend="cpu")

    before = run(k, v)
    k, v = k.clone(), v.clone()
    k[candidate] += 1
    v[candidate] += 1
    after = run(k, v)
    changed = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed in ([], [candidate])


tile_edge = st.sampled_from([0, 0, 1, 2, 63, 64, 65, 127, 128, 129, 1100])
tile_counts = st.lists(st.tuples(tile_edge, tile_edge, tile_edge), max_size=5)


@pytest.mark.gpu
@settings(max_examples=40, deadline=None)
@given(
    counts=tile_counts,
    seed=st.integers(0, 2**31),
    num_heads=st.integers(1, 3),
    head_dim=st.sampled_from([64, 128, 256]),
)
def test_gpu_backends_on_random_rows(backend, counts, seed, num_heads, head_dim):
    static, realtime, candidates = ([row[n] for row in counts] for n in range(3))
    rows = Jagged.random(static=static, realtime=realtime, candidates=candidates, seed=seed)
    check_attention(backend, rows.to("cuda"), num_heads, head_dim, torch.bfloat16)


@pytest.mark.gpu
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 700), max_size=5), seed=st.integers(0, 2**31))
def test_gpu_backends_on_any_mask(backend, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    end = [torch.randint(0, n + 1, (n,), generator=generator) for n in lengths]
    visible_end = torch.cat([*end, torch.zeros(0, dtype=torch.int64)]).int()
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    rows = Jagged(offsets=offsets, visible_end=visible_end, group=visible_end).to("cuda")
    check_attention(backend, rows, 2, 128, torch.bfloat16)
