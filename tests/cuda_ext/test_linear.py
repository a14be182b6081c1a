"""`linear` against `torch.nn.functional.linear`, and what its backward pass rounds."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hstu_ops import linear


def inputs(device: str, num_tokens: int, width_in: int, width_out: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    shapes = [(num_tokens, width_in), (width_out, width_in), (width_out,)]
    return [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]


def test_on_a_cpu_it_is_torchs():
    x, weight, bias = inputs("cpu", 7, 5, 3)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("num_tokens", "width_in", "width_out"), [(48_001, 768, 3072), (1_000, 40, 24), (3, 8, 8), (0, 8, 8)]
)
def test_under_autocast_gradients_are_no_less_exact(num_tokens, width_in, width_out):
    tensors = inputs("cuda", num_tokens, width_in, width_out)
    grad = torch.randn(num_tokens, width_out, device="cuda").bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        y, expected = (layer(*tensors) for layer in (linear, F.linear))
    assert torch.equal(y, expected)
    ours, torchs = (torch.autograd.grad(out, tensors, grad) for out in (y, expected))
    assert [one.dtype for one in ours] == [torch.float32] * 3
    x, weight, _ = (one.detach().bfloat16().double() for one in tensors)
    exact = grad.double() @ weight, grad.double().t() @ x, grad.double().sum(0)
    for one, other, true in zip(ours, torchs, exact, strict=True):
        error, of_torch = ((given.double() - true).abs().sum() for given in (one, other))
        assert error <= of_torch * 1.01 + 1e-9
    if num_tokens > 1000:  # the bias' sum is in float32, where torch's is rounded to bfloat16
        error, of_torch = ((given[2].double() - exact[2]).abs().mean() for given in (ours, torchs))
        assert error < 0.1 * of_torch


@pytest.mark.gpu
def test_gradients_have_equal_bits():
    tensors = inputs("cuda", 9_000, 256, 512)
    grad = torch.randn(9_000, 512, device="cuda").bfloat16()
    runs = []
    for _ in range(5):
        with torch.autocast("cuda", torch.bfloat16):
            y = linear(*tensors)
        runs.append(torch.autograd.grad(y, tensors, grad))
    for run in runs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0], strict=True))
