"""Every group layer norm backend against the float64 reference, and that against torch's layer norm."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hstu_ops import add_group_layer_norm, group_layer_norm

from tests.cuda_ext.operator_cases import check_add_norm, check_norm

FLOAT32 = torch.float32


def test_one_group_is_torch_layer_norm():
    x = torch.randn(9, 16, dtype=torch.float64)
    weight, bias = torch.randn(2, 1, 16, dtype=torch.float64).unbind(0)
    group = torch.zeros(9, dtype=torch.int32)
    y = group_layer_norm(x, group, weight, bias, 1e-6, backend="reference")
    torch.testing.assert_close(y, F.layer_norm(x, (16,), weight[0], bias[0], 1e-6))


def test_each_token_takes_its_groups_scale_and_shift():
    x = torch.tensor([[1.0, -1.0], [1.0, -1.0], [3.0, 1.0]])
    weight, bias = torch.tensor([[1.0, 1.0], [10.0, 20.0]]), torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    y = group_layer_norm(x, torch.tensor([0, 1, 0]), weight, bias, 0.0, backend="reference")
    torch.testing.assert_close(y, torch.tensor([[1.0, -1.0], [15.0, -15.0], [1.0, -1.0]]))


def test_gate_multiplies_before_the_statistics():
    x, gate = torch.randn(2, 5, 8, dtype=torch.float64).unbind(0)
    weight, bias = torch.randn(2, 3, 8, dtype=torch.float64).unbind(0)
    group = torch.tensor([0, 1, 1, 2, 0])
    gated = group_layer_norm(x, group, weight, bias, 1e-5, gate_TD=gate, backend="reference")
    torch.testing.assert_close(
        gated, group_layer_norm(x * gate, group, weight, bias, 1e-5, backend="reference")
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "dim", "num_groups", "dtype", "weight_dtype"),
    [
        (700, 64, 4, FLOAT32, FLOAT32),
        (513, 33, 9, FLOAT32, FLOAT32),
        (40, 24, 2, FLOAT32, FLOAT32),
        (300, 48, 4, torch.float64, torch.float64),
        (300, 48, 4, torch.bfloat16, FLOAT32),
        (300, 48, 4, torch.float16, torch.float16),
        (0, 16, 2, FLOAT32, FLOAT32),
    ],
)
def test_norm(backend, num_tokens, dim, num_groups, dtype, weight_dtype, gated):
    check_norm(backend, num_tokens, dim, num_groups, dtype, weight_dtype, gated)


def test_norm_gradcheck(backend):
    group = torch.tensor([0, 2, 2, 1, 0])
    x, gate = (torch.randn(5, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def norm(x, weight, bias, gate):
        return group_layer_norm(x, group, weight, bias, 1e-3, gate_TD=gate, backend=backend)

    assert torch.autograd.gradcheck(norm, (x, weight, bias, gate))
    assert torch.autograd.gradcheck(lambda *inputs: norm(*inputs, None), (x, weight, bias))


def test_norm_of_a_slice_and_an_expanded_gradient(backend):
    wide = torch.randn(20, 3, 8, requires_grad=True)
    group, ones = torch.zeros(20, dtype=torch.int64), torch.ones(1, 8)
    y = group_layer_norm(wide[:, 1], group, ones, ones, 1e-5, gate_TD=wide[:, 2], backend=backend)
    expected = group_layer_norm(wide[:, 1], group, ones, ones, 1e-5, gate_TD=wide[:, 2], backend="reference")
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(out.sum(), wide)[0] for out in (y, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "dim", "num_groups", "dtype", "weight_dtype"),
    [
        (70_000, 768, 4, torch.bfloat16, FLOAT32),
        (5_000, 512, 12, torch.bfloat16, torch.bfloat16),
        (3_001, 100, 33, torch.float16, FLOAT32),
        (1_000, 64, 4, FLOAT32, FLOAT32),
        (1_000, 24, 2, FLOAT32, FLOAT32),
        (9_000, 64, 1, torch.bfloat16, FLOAT32),
        (600, 5000, 3, torch.bfloat16, FLOAT32),
        (0, 64, 4, torch.bfloat16, FLOAT32),
    ],
)
def test_norm_on_a_gpu(num_tokens, dim, num_groups, dtype, weight_dtype, gated):
    check_norm("triton", num_tokens, dim, num_groups, dtype, weight_dtype, gated)


@pytest.mark.gpu
def test_norm_on_a_gpu_gives_equal_bits():
    torch.manual_seed(0)
    x = torch.randn(9_000, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.randn(4, 768, device="cuda", requires_grad=True) for _ in range(2))
    group = torch.randint(0, 4, (9_000,), device="cuda")
    runs = []
    for _ in range(5):
        y = group_layer_norm(x, group, weight, bias, 1e-5, backend="triton")
        runs.append(torch.autograd.grad(y.float().square().sum(), (x, weight, bias)))
    for run in runs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(("num_tokens", "dim"), [(300, 48), (0, 16)])
def test_the_norm_of_a_sum_is_that_of_the_sum(backend, num_tokens, dim):
    check_add_norm(backend, num_tokens, dim, FLOAT32)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("num_tokens", "dim", "dtype"),
    [
        (70_000, 768, torch.bfloat16),
        (3_001, 100, torch.float16),
        (1_000, 24, FLOAT32),
        (0, 64, torch.bfloat16),
    ],
)
def test_the_norm_of_a_sum_on_a_gpu(num_tokens, dim, dtype):
    check_add_norm("triton", num_tokens, dim, dtype)


def test_a_bias_in_the_sum_is_for_gpus(backend):
    x, bias = torch.randn(2, 5, 8).unbind(0)
    with pytest.raises(ValueError, match="x_bias gets its gradient by backends 'triton' and 'cutlass'"):
        add_group_layer_norm(
            x, x, torch.zeros(5, dtype=torch.int32), x[:1], x[:1], 1e-5, x_bias_D=bias[0], backend=backend
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [100, 512, 768])
def test_a_bias_in_the_sum_gets_the_sum_of_the_gradients(dim):
    torch.manual_seed(0)
    x, residual = (torch.randn(9_001, dim, device="cuda").bfloat16().requires_grad_() for _ in range(2))
    weight, bias = (torch.randn(4, dim, device="cuda", requires_grad=True) for _ in range(2))
    x_bias = torch.randn(dim, device="cuda", requires_grad=True)
    group = torch.randint(0, 4, (9_001,), device="cuda").sort().values
    summed, y = add_group_layer_norm(
        x, residual, group, weight, bias, 1e-5, x_bias_D=x_bias, backend="triton"
    )
    loss = (y.float() * torch.randn_like(y).float()).sum() + summed.float().square().sum()
    grad_x, grad_x_bias = torch.autograd.grad(loss, (x, x_bias))
    exact = grad_x.double().sum(0)
    assert (grad_x_bias - exact).abs().max() < 1e-3 * grad_x.double().abs().sum(0).max()
