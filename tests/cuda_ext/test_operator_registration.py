"""The operators as PyTorch sees them: opcheck, compile, export, activation checkpointing, autocast."""

import pytest
import torch
from hstu_ops import group_layer_norm, mtgr_attention
from torch.utils.checkpoint import checkpoint

from tests.cuda_ext.operator_cases import batch

OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def attention_inputs(device: str, dtype: torch.dtype, num_heads: int = 2, head_dim: int = 32) -> tuple:
    rows = batch("mixed", device)
    torch.manual_seed(0)
    shape = (rows.num_tokens, num_heads, head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v, rows.offsets, rows.visible_end


def norm_inputs(device: str, dtype: torch.dtype, gated: bool) -> tuple:
    torch.manual_seed(0)
    x, gate = (torch.randn(100, 64, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(4, 64, device=device, requires_grad=True) for _ in range(2))
    return x, torch.arange(100, device=device) % 4, weight, bias, 1e-5, gate if gated else None


class Block(torch.nn.Module):
    """The middle of an MTGR block: UVQK product, attention, gate and norm."""

    def __init__(self, backend: str, num_heads: int = 2, head_dim: int = 32) -> None:
        super().__init__()
        self.backend, self.num_heads, self.head_dim = backend, num_heads, head_dim
        width = num_heads * head_dim
        self.uvqk = torch.nn.Linear(width, 4 * width)
        self.weight, self.bias = (torch.nn.Parameter(torch.rand(4, width)) for _ in range(2))

    def forward(self, x, offsets, visible_end, group):
        u, v, q, k = self.uvqk(x).unflatten(1, (4, self.num_heads, self.head_dim)).unbind(1)
        out = mtgr_attention(q, k, v, offsets, visible_end, 0.1, 0.01, backend=self.backend)
        return group_layer_norm(
            out.flatten(1), group, self.weight, self.bias, 1e-5, gate_TD=u.flatten(1), backend=self.backend
        )


def block_inputs(device: str = "cpu") -> tuple:
    rows = batch("mixed", device)
    torch.manual_seed(0)
    x = torch.randn(rows.num_tokens, 64, device=device, requires_grad=True)
    return x, rows.offsets, rows.visible_end, rows.group


def parameter_gradients(function, block, inputs) -> list[torch.Tensor]:
    return list(
        torch.autograd.grad(function(*inputs).float().square().sum(), [inputs[0], *block.parameters()])
    )


def test_opcheck_attention():
    *tensors, offsets, end = attention_inputs("cpu", torch.float32)
    args = (*tensors, offsets, end, 0.1, 0.01, False)
    torch.library.opcheck(torch.ops.hstu_ops.mtgr_attention.default, args, test_utils=OPCHECKS)
    detached = [t.detach() for t in tensors]
    args = (torch.randn_like(detached[0]), *detached, offsets, end, 0.1, 0.01, False)
    torch.library.opcheck(torch.ops.hstu_ops.mtgr_attention_backward.default, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("gated", [False, True])
def test_opcheck_norm(gated):
    x, group, weight, bias, eps, gate = norm_inputs("cpu", torch.float32, gated)
    args = (x, group, weight, bias, eps, gate)
    torch.library.opcheck(torch.ops.hstu_ops.group_layer_norm.default, args, test_utils=OPCHECKS)
    _, mean, rstd = torch.ops.hstu_ops.group_layer_norm(*args)
    args = (torch.randn_like(x), x, group, weight, mean, rstd, gate)
    args = tuple(t.detach() if t is not None else None for t in args)
    torch.library.opcheck(torch.ops.hstu_ops.group_layer_norm_backward.default, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(backend, dynamic):
    block, inputs = Block(backend), block_inputs()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for ours, eager in zip(
        parameter_gradients(compiled, block, inputs), parameter_gradients(block, block, inputs), strict=True
    ):
        torch.testing.assert_close(ours, eager)


def test_compile_chooses_auto_backend():
    block, inputs = Block("auto"), block_inputs()
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), block(*inputs))


def test_export_and_run_again(backend):
    block, inputs = Block(backend).eval(), block_inputs()
    tokens = torch.export.Dim("tokens", min=2, max=1 << 20)
    rows = torch.export.Dim("rows", min=2, max=1 << 16)
    shapes = ({0: tokens}, {0: rows}, {0: tokens}, {0: tokens})
    program = torch.export.export(block, inputs, dynamic_shapes=shapes)
    other = batch("odd lengths")
    inputs = (torch.randn(other.num_tokens, 64), other.offsets, other.visible_end, other.group)
    torch.testing.assert_close(program.module()(*inputs), block(*inputs))


def test_activation_checkpointing(backend):
    block, inputs = Block(backend), block_inputs()

    def checkpointed(*inputs):
        return checkpoint(block, *inputs, use_reentrant=False)

    for ours, eager in zip(
        parameter_gradients(checkpointed, block, inputs),
        parameter_gradients(block, block, inputs),
        strict=True,
    ):
        assert torch.equal(ours, eager)


def test_autocast_casts_attention_and_keeps_the_norm(backend):
    q, k, v, offsets, end = attention_inputs("cpu", torch.float32)
    x, group, weight, bias, eps, gate = norm_inputs("cpu", torch.float32, True)
    with torch.autocast("cpu", torch.bfloat16):
        out = mtgr_attention(q, k, v, offsets, end, 0.1, 0.01, backend=backend)
        y = group_layer_norm(x, group, weight, bias, eps, gate_TD=gate.bfloat16(), backend=backend)
    assert (out.dtype, y.dtype) == (torch.bfloat16, torch.float32)
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(out.sum(), (q, k, v)))


def test_second_derivative_is_refused(backend):
    q, k, v, offsets, end = attention_inputs("cpu", torch.float32)
    out = mtgr_attention(q, k, v, offsets, end, 0.1, 0.01, backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        grad.sum().backward()


@pytest.mark.gpu
def test_opcheck_on_a_gpu(backend):
    *tensors, offsets, end = attention_inputs("cuda", torch.bfloat16, head_dim=64)
    args = (*tensors, offsets, end, 0.1, 0.01, True)
    operator = "mtgr_attention_triton" if backend == "triton" else "mtgr_attention"
    torch.library.opcheck(getattr(torch.ops.hstu_ops, operator).default, args, test_utils=OPCHECKS)


@pytest.mark.gpu
@pytest.mark.parametrize("gated", [False, True])
def test_opcheck_norm_on_a_gpu(gated):
    args = norm_inputs("cuda", torch.bfloat16, gated)
    torch.library.opcheck(torch.ops.hstu_ops.group_layer_norm_triton.default, args, test_utils=OPCHECKS)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", "auto"])
def test_compile_fullgraph_under_autocast_on_a_gpu(name):
    block, inputs = Block(name).cuda(), block_inputs("cuda")

    def run(*inputs):
        with torch.autocast("cuda", torch.bfloat16):
            return block(*inputs)

    compiled = torch.compile(run, fullgraph=True, backend="inductor")
    for ours, eager in zip(
        parameter_gradients(compiled, block, inputs), parameter_gradients(run, block, inputs), strict=True
    ):
        torch.testing.assert_close(ours, eager, atol=2e-2, rtol=5e-2)
