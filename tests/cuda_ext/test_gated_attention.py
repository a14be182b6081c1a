"""`gated_attention` is the two operators it stands for, to the bit, and its errors name the argument."""

import pytest
import torch
from hstu_ops import gated_attention, group_layer_norm, mtgr_attention
from torch.utils.checkpoint import checkpoint

from tests.cuda_ext.operator_cases import batch

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
SCALES = (0.1, 0.02, 1e-5)  # alpha, inv_n, eps


def arguments(device: str, dtype: torch.dtype, head_dim: int = 64) -> tuple:
    rows = batch("mixed", device)
    torch.manual_seed(0)
    uvqk = torch.randn(rows.num_tokens, 4, 2, head_dim, device=device).to(dtype).requires_grad_()
    weight, bias = (torch.randn(4, 2 * head_dim, device=device, requires_grad=True) for _ in range(2))
    return uvqk, rows.offsets, rows.visible_end, rows.group, weight, bias


def two_operators(uvqk, offsets, end, group, weight, bias, backend):
    u, v, q, k = uvqk.unbind(1)
    alpha, inv_n, eps = SCALES
    out = mtgr_attention(q, k, v, offsets, end, alpha, inv_n, backend=backend)
    gate = u.flatten(1).to(out.dtype)
    return group_layer_norm(out.flatten(1), group, weight, bias, eps, gate_TD=gate, backend=backend)


def assert_equals_two_operators(args: tuple, backend: str) -> None:
    wanted = (args[0], *args[4:])
    results = []
    for y in (gated_attention(*args, *SCALES, backend=backend), two_operators(*args, backend)):
        torch.manual_seed(1)
        results.append([y.detach(), *torch.autograd.grad(y, wanted, torch.randn_like(y))])
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_equals_the_two_operators(backend, dtype):
    assert_equals_two_operators(arguments("cpu", dtype, 8), backend)


def test_autocast(backend):
    args = arguments("cpu", torch.float32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equals_two_operators(args, backend)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda uvqk: uvqk[:, :3], r"uvqk must be \[T, 4, N, D\], got .*3, 2, 8"),
        (lambda uvqk: uvqk.flatten(1), r"uvqk must be \[T, 4, N, D\]"),
        (lambda uvqk: uvqk.transpose(1, 2).contiguous().transpose(1, 2), "uvqk must be contiguous"),
    ],
)
def test_errors(change, message):
    uvqk, *rest = arguments("cpu", torch.float32, 8)
    with pytest.raises(ValueError, match=message):
        gated_attention(change(uvqk), *rest, *SCALES)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_equals_the_two_operators_on_a_gpu(backend, head_dim, dtype):
    assert_equals_two_operators(arguments("cuda", dtype, head_dim), backend)


@pytest.mark.gpu
def test_empty_batch_on_a_gpu(backend):
    uvqk, _, end, group, weight, bias = arguments("cuda", torch.bfloat16)
    none = torch.zeros(1, dtype=torch.int32, device="cuda")
    uvqk = uvqk.detach()[:0].requires_grad_()
    y = gated_attention(uvqk, none, end[:0], group[:0], weight, bias, *SCALES, backend=backend)
    grads = torch.autograd.grad(y.sum(), (uvqk, weight))
    assert y.shape == (0, 128)
    assert grads[1].abs().max() == 0


@pytest.mark.gpu
def test_a_bias_of_uvqk_gets_the_sums_of_the_gradients_on_a_gpu(backend):
    uvqk, *rest = arguments("cuda", torch.bfloat16)
    uvqk_bias = torch.randn(512, device="cuda", requires_grad=True)
    y = gated_attention(uvqk, *rest, *SCALES, backend=backend, uvqk_bias=uvqk_bias)
    torch.manual_seed(2)
    grad_uvqk, grad_bias = torch.autograd.grad(y, (uvqk, uvqk_bias), torch.randn_like(y))
    flat = grad_uvqk.double().flatten(1)
    assert grad_bias.dtype == torch.float32
    assert (grad_bias - flat.sum(0)).abs().max() < 1e-3 * flat.abs().sum(0).max()


@pytest.mark.gpu
def test_opcheck_on_a_gpu(backend):
    args = (*arguments("cuda", torch.bfloat16), *SCALES, True)
    operator = "gated_attention_triton" if backend == "triton" else "gated_attention"
    torch.library.opcheck(getattr(torch.ops.hstu_ops, operator).default, args, test_utils=OPCHECKS)


class Middle(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.uvqk = torch.nn.Linear(128, 512)
        self.weight, self.bias = (torch.nn.Parameter(torch.rand(4, 128)) for _ in range(2))

    def forward(self, x, offsets, end, group):
        uvqk = self.uvqk(x).view(-1, 4, 2, 64)
        return gated_attention(
            uvqk, offsets, end, group, self.weight, self.bias, *SCALES, backend=self.backend
        )


def middle(backend: str, name: str = "mixed") -> tuple[Middle, tuple]:
    rows = batch(name, "cuda")
    torch.manual_seed(0)
    module = Middle(backend).to("cuda", torch.bfloat16)
    x = torch.randn(rows.num_tokens, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    return module, (x, rows.offsets, rows.visible_end, rows.group)


def all_gradients(function, module, inputs) -> list[torch.Tensor]:
    y = function(*inputs)
    torch.manual_seed(2)
    return [y.detach(), *torch.autograd.grad(y, [inputs[0], *module.parameters()], torch.randn_like(y))]


@pytest.mark.gpu
def test_compile_fullgraph_and_checkpointing_on_a_gpu(backend):
    module, inputs = middle(backend)
    expected = all_gradients(module, module, inputs)
    compiled = torch.compile(module, fullgraph=True)
    for ours, eager in zip(all_gradients(compiled, module, inputs), expected, strict=True):
        torch.testing.assert_close(ours, eager, atol=2e-2, rtol=5e-2)

    def checkpointed(*inputs):
        return checkpoint(module, *inputs, use_reentrant=False)

    for ours, eager in zip(all_gradients(checkpointed, module, inputs), expected, strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.gpu
def test_export_on_a_gpu(backend):
    module, inputs = middle(backend)
    tokens, rows = (
        torch.export.Dim("tokens", min=2, max=1 << 20),
        torch.export.Dim("rows", min=2, max=1 << 16),
    )
    shapes = ({0: tokens}, {0: rows}, {0: tokens}, {0: tokens})
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    _, others = middle(backend, "odd lengths")
    assert torch.equal(program.module()(*others), module(*others))


@pytest.mark.gpu
def test_cuda_graph(backend):
    module, inputs = middle(backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        all_gradients(module, module, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    cotangent = torch.randn(inputs[0].shape, device="cuda", dtype=torch.bfloat16)
    wanted = [inputs[0], *module.parameters()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = torch.autograd.grad(module(*inputs), wanted, cotangent)
    with torch.no_grad():
        inputs[0].copy_(torch.randn_like(inputs[0]))
    graph.replay()
    for replayed, eager in zip(
        captured, torch.autograd.grad(module(*inputs), wanted, cotangent), strict=True
    ):
        assert torch.equal(replayed, eager)
