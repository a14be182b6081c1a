"""Every attention backend against the float64 reference: forward, gradients, awkward rows, determinism."""

import math

import pytest
import torch
from hstu_ops import mtgr_attention

from benchmarks.shapes import Jagged
from tests.cuda_ext.operator_cases import BATCHES, batch, check_attention

CPU_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
GPU_DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("name", BATCHES)
def test_awkward_rows(backend, name):
    check_attention(backend, batch(name), 2, 32, torch.float32)


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 24, 64])
def test_dtypes_and_head_dims(backend, dtype, head_dim):
    check_attention(backend, batch("mixed"), 3, head_dim, dtype)


def test_gradcheck(backend):
    offsets = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    end = torch.tensor([2, 2, 2, 3, 2, 2, 2, 3, 0], dtype=torch.int32)
    product = torch.randn(9, 4, 1, 3, dtype=torch.float64, requires_grad=True)

    def attention(product):
        _, v, q, k = product.unbind(1)
        return mtgr_attention(q, k, v, offsets, end, 0.7, 0.3, backend=backend)

    assert torch.autograd.gradcheck(attention, (product,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_expanded_inputs_and_gradients_are_read_as_they_are(backend, dtype):
    rows = batch("mixed")
    torch.manual_seed(0)
    k = torch.randn(rows.num_tokens, 2, 8).to(dtype).requires_grad_()
    row, weight = torch.randn(2, 1, 2, 8).to(dtype).unbind(0)
    q = row.requires_grad_()

    def run(name: str) -> tuple[torch.Tensor, ...]:
        out = mtgr_attention(q.expand_as(k), k, k, rows.offsets, rows.visible_end, 0.3, 0.05, backend=name)
        return torch.autograd.grad((out * weight).sum(0).sum(), (q, k))

    for ours, expected in zip(run(backend), run("reference"), strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-5 if dtype == torch.float32 else 0.3, rtol=0.02)


def test_row_longer_than_a_block_of_keys(backend):
    check_attention(
        backend, Jagged.random(static=[1060], realtime=[20], candidates=[30]), 2, 16, torch.float32
    )


def test_any_visible_end_is_taken(backend):
    lengths = [70, 1, 0, 133]
    generator = torch.Generator().manual_seed(2)
    end = torch.cat([torch.randint(0, n + 1, (n,), generator=generator) for n in lengths]).int()
    rows = Jagged(
        offsets=torch.tensor([0, 70, 71, 71, 204], dtype=torch.int32), visible_end=end, group=end * 0
    )
    check_attention(backend, rows, 2, 16, torch.float32)


@pytest.mark.parametrize("threads", [1, 2])
def test_backward_gives_equal_bits_on_any_number_of_threads(backend, threads):
    before = torch.get_num_threads()

    def run() -> list[torch.Tensor]:
        rows = batch("mixed")
        torch.manual_seed(0)
        q, k, v = (torch.randn(rows.num_tokens, 2, 32, requires_grad=True) for _ in range(3))
        out = mtgr_attention(
            q, k, v, rows.offsets, rows.visible_end, 0.2, 0.1, backend=backend, deterministic=True
        )
        return list(torch.autograd.grad(out.square().sum(), (q, k, v)))

    expected = run()
    try:
        torch.set_num_threads(threads)
        for ours, theirs in zip(run(), expected, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_extreme_scores_saturate_and_nan_stays_nan(backend):
    offsets, end = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    k = v = torch.ones(1, 1, 1)
    for score, expected in ((1e4, 1e4), (-1e4, 0.0), (0.0, 0.0), (90.0, 90.0), (-90.0, 0.0)):
        q = torch.full((1, 1, 1), score, requires_grad=True)
        out = mtgr_attention(q, k, v, offsets, end, 1.0, 1.0, backend=backend)
        assert out.item() == pytest.approx(expected, abs=1e-30)
        assert torch.autograd.grad(out, q)[0].item() == pytest.approx(
            1.0 if score > 1 else (score == 0) / 2, abs=1e-30
        )
    out = mtgr_attention(torch.full((1, 1, 1), torch.nan), k, v, offsets, end, 1.0, 1.0, backend=backend)
    assert out.isnan().all()


def check_far_below_zero(backend: str, rows: Jagged, head_dim: int, dtype: torch.dtype, score: float) -> None:
    """Holds results and gradients to 1 % where all scores are about `score`: all are small there together."""
    alpha = head_dim**-0.5
    generator = torch.Generator().manual_seed(6)
    normal = torch.randn(4, rows.num_tokens, 2, head_dim, generator=generator) * 0.3
    common = (-score / (alpha * head_dim)) ** 0.5
    drawn = [normal[0] + common, normal[1] - common, normal[2], normal[3]]
    grad, *parts = (part.to(rows.offsets.device, dtype) for part in (drawn[3], *drawn[:3]))

    def run(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (part.to(dtype).requires_grad_() for part in parts)
        out = mtgr_attention(q, k, v, rows.offsets, rows.visible_end, alpha, 1.0, backend=name)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(dtype))]

    for ours, exact in zip(run(backend, dtype), run("reference", torch.float64), strict=True):
        assert (ours.double() - exact).norm() <= 0.01 * exact.norm()


@pytest.mark.parametrize("score", [-6.0, -10.0, -14.0, -20.0, -40.0])
def test_scores_far_below_zero(backend, score):
    check_far_below_zero(backend, batch("mixed"), 16, torch.float32, score)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("score", [-6.0, -10.0, -14.0, -20.0, -40.0])
def test_scores_far_below_zero_on_a_gpu(backend, head_dim, score):
    check_far_below_zero(backend, batch("mixed", "cuda"), head_dim, torch.bfloat16, score)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("name", BATCHES)
def test_awkward_rows_on_a_gpu(backend, name, head_dim, dtype):
    check_attention(backend, batch(name, "cuda"), 2, head_dim, dtype)


@pytest.mark.gpu
def test_row_of_16k_tokens_on_a_gpu(backend):
    rows = Jagged.random(static=[16_000, 10], realtime=[100, 3], candidates=[284, 5]).to("cuda")
    check_attention(backend, rows, 1, 64, torch.bfloat16)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements_on_a_gpu(backend):
    rows = Jagged.random(static=[900] * 2100, realtime=[50] * 2100, candidates=[74] * 2100).to("cuda")
    shape = (rows.num_tokens, 4, 256)
    assert math.prod(shape) > 2**31
    if torch.cuda.mem_get_info()[0] < 60 * 2**30:
        pytest.skip("q, k, v, their gradients and the result take 40 GB")
    torch.manual_seed(0)
    grad, *parts = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))

    def run(tokens: slice, offsets: torch.Tensor) -> list[torch.Tensor]:
        q, k, v = (part[tokens].requires_grad_() for part in parts)
        out = mtgr_attention(q, k, v, offsets, rows.visible_end[tokens], 0.1, 0.1, backend=backend)
        grads = torch.autograd.grad(out, (q, k, v), grad[tokens])
        return [tensor[-1024:] for tensor in (out.detach(), *grads)]

    whole = run(slice(None), rows.offsets)
    alone = run(slice(-1024, None), rows.offsets[:2].contiguous())
    for ours, expected in zip(whole, alone, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_triton_dtypes_and_head_dims(head_dim, dtype):
    check_attention("triton", batch("mixed", "cuda"), 3, head_dim, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 256])
def test_triton_tiles_for_less_shared_memory(head_dim, monkeypatch):
    configs = pytest.importorskip("hstu_ops.triton_ops.configs")
    monkeypatch.setattr(configs, "_HOPPER", configs._SMALL)
    check_attention("triton", batch("mixed", "cuda"), 2, head_dim, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 256])
def test_deterministic_backward_on_a_gpu(backend, head_dim):
    rows = batch("mixed", "cuda")
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(rows.num_tokens, 2, head_dim, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    runs = []
    for _ in range(5):
        out = mtgr_attention(
            q, k, v, rows.offsets, rows.visible_end, 0.1, 0.1, backend=backend, deterministic=True
        )
        runs.append(torch.autograd.grad(out.float().square().sum(), (q, k, v)))
    for run in runs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_cuda_graph_takes_forward_and_backward(backend):
    rows = batch("mixed", "cuda")
    q, k, v = (
        torch.randn(rows.num_tokens, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )

    def step() -> list[torch.Tensor]:
        out = mtgr_attention(
            q, k, v, rows.offsets, rows.visible_end, 0.1, 0.1, backend=backend, deterministic=True
        )
        return [out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        q.copy_(torch.randn_like(q))
    graph.replay()
    for replayed, eager in zip(captured, step(), strict=True):
        assert torch.equal(replayed, eager)
