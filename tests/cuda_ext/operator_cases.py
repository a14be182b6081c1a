"""What the proofs of every backend share: batches with awkward rows, and how exact a kernel must be.

A kernel is held against the float64 reference: its error may be twice that of the PyTorch reference run in
the kernel's own precision, plus one rounding of the largest result (a few for the exact dtypes). Inputs are
rounded to that precision first, for both.
"""

from collections.abc import Sequence

import torch
from hstu_ops.attention import mtgr_attention
from hstu_ops.norm import add_group_layer_norm, group_layer_norm
from torch import Tensor

from benchmarks.shapes import Jagged

# Roundings of the largest result that a kernel may be off beside twice PyTorch's error. In float32 both sides
# err by the order of their sums alone, so by chance; a float64 kernel is as exact as the reference itself.
_ROUNDINGS = {torch.float32: 8, torch.float64: 64}

# Static, real-time and candidate tokens of each row.
Counts = Sequence[tuple[int, int, int]]
BATCHES: dict[str, Counts] = {
    "mixed": [(40, 7, 13), (90, 20, 45), (0, 0, 0), (3, 60, 66), (200, 30, 70)],
    "odd lengths": [
        (0, 0, 1),
        (1, 0, 0),
        (30, 10, 23),
        (50, 10, 4),
        (5, 30, 30),
        (100, 10, 17),
        (64, 32, 32),
    ],
    "past a block": [(100, 20, 9), (129, 0, 0), (0, 129, 0), (0, 0, 129)],
    "one row of 1100": [(1000, 40, 60)],
    "all static": [(65, 0, 0), (128, 0, 0)],
    "no real-time": [(70, 0, 50), (1, 0, 5)],
    "no candidates": [(33, 31, 0), (0, 64, 0)],
    "only candidates": [(0, 0, 70)],
    "empty rows": [(0, 0, 0), (0, 0, 0), (10, 2, 3), (0, 0, 0)],
    "no tokens": [(0, 0, 0), (0, 0, 0)],
    "no rows": [],
}


def batch(name: str, device: str = "cpu") -> Jagged:
    """Returns one of `BATCHES`, its times drawn with a fixed seed."""
    static, realtime, candidates = ([row[n] for row in BATCHES[name]] for n in range(3))
    return Jagged.random(static=static, realtime=realtime, candidates=candidates).to(device)


def gradients(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the output and the gradients of its product with fixed normal numbers, all float64."""
    generator = torch.Generator(device=output.device).manual_seed(11)
    cotangent = torch.randn(output.shape, generator=generator, device=output.device, dtype=torch.float32)
    grads = torch.autograd.grad(output, inputs, cotangent.to(output.dtype))
    return [tensor.detach().double() for tensor in (output, *grads)]


def assert_as_exact_as_pytorch(
    kernel: Sequence[Tensor],
    pytorch: Sequence[Tensor],
    exact: Sequence[Tensor],
    dtype: torch.dtype,
    names: Sequence[str],
) -> None:
    """Asserts error(kernel) <= 2 error(pytorch) + one rounding of the largest result, for every tensor."""
    for name, ours, theirs, truth in zip(names, kernel, pytorch, exact, strict=True):
        assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
        if truth.numel() == 0:
            continue
        error = (ours - truth).abs().max().item()
        roundings = _ROUNDINGS.get(dtype, 1)
        allowed = 2 * (theirs - truth).abs().max().item()
        allowed += roundings * torch.finfo(dtype).eps / 2 * truth.abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def check_attention(
    backend: str,
    rows: Jagged,
    num_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    deterministic: bool = False,
) -> None:
    """Holds `mtgr_attention` of a backend, q, k, v being slices of one product, against the reference."""
    device = rows.offsets.device
    generator = torch.Generator(device=device).manual_seed(3)
    shape = (rows.num_tokens, 4, num_heads, head_dim)
    product = torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
    inv_n = 1.0 / 50

    def run(name: str, dtype: torch.dtype) -> list[Tensor]:
        _, v, q, k = (part.requires_grad_() for part in product.to(dtype).unbind(1))
        out = mtgr_attention(
            q,
            k,
            v,
            rows.offsets,
            rows.visible_end,
            head_dim**-0.5,
            inv_n,
            backend=name,
            deterministic=deterministic,
        )
        return gradients(out, (q, k, v))

    names = ("out", "grad_q", "grad_k", "grad_v")
    assert_as_exact_as_pytorch(
        run(backend, dtype), run("reference", dtype), run("reference", torch.float64), dtype, names
    )


def check_norm(
    backend: str,
    num_tokens: int,
    dim: int,
    num_groups: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    gated: bool,
) -> None:
    """Holds `group_layer_norm` of a backend, x and gate being slices of one tensor, against the reference."""
    device = "cpu" if backend == "cpu" else "cuda"
    generator = torch.Generator(device=device).manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)

    pair = (normal(num_tokens, 2 * dim) * 3 + 1).to(dtype)
    group = torch.randint(0, num_groups, (num_tokens,), generator=generator, device=device).sort().values
    weight, bias = normal(num_groups, dim).to(weight_dtype), normal(num_groups, dim).to(weight_dtype)

    def run(name: str, exact: bool) -> list[Tensor]:
        x, gate = (part.requires_grad_() for part in (pair.double() if exact else pair).chunk(2, dim=1))
        w, b = ((t.double() if exact else t.clone()).requires_grad_() for t in (weight, bias))
        y = group_layer_norm(x, group, w, b, 1e-5, gate_TD=gate if gated else None, backend=name)
        return gradients(y, (x, w, b, gate) if gated else (x, w, b))

    names = ("y", "grad_x", "grad_weight", "grad_bias", "grad_gate")[: 5 if gated else 4]
    assert_as_exact_as_pytorch(
        run(backend, False), run("reference", False), run("reference", True), dtype, names
    )


def check_add_norm(backend: str, num_tokens: int, dim: int, dtype: torch.dtype) -> None:
    """Holds `add_group_layer_norm`, both of whose results are used, against the reference."""
    device = "cpu" if backend in ("cpu", "reference") else "cuda"
    generator = torch.Generator(device=device).manual_seed(6)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)

    x, residual = ((normal(num_tokens, dim) * 3 + 1).to(dtype) for _ in range(2))
    group = torch.randint(0, 4, (num_tokens,), generator=generator, device=device).sort().values
    weight, bias, mix = normal(4, dim), normal(4, dim), normal(num_tokens, dim).to(dtype)
    # The norm is of the sum as it is kept: the exact side begins with what was rounded off, too.
    rounded_off = (x + residual).double() - (x.double() + residual.double())

    def run(name: str, exact: bool) -> list[Tensor]:
        leaves = [(t.double() if exact else t.clone()).requires_grad_() for t in (x, residual, weight, bias)]
        if exact:
            summed = leaves[0] + leaves[1] + rounded_off
            y = group_layer_norm(summed, group, leaves[2], leaves[3], 1e-5, backend="reference")
        else:
            summed, y = add_group_layer_norm(leaves[0], leaves[1], group, *leaves[2:], 1e-5, backend=name)
            assert torch.equal(summed, x + residual)
        return gradients(y + mix.to(y.dtype) * summed, leaves)

    assert_as_exact_as_pytorch(
        run(backend, False),
        run("reference", False),
        run("reference", True),
        dtype,
        ("out", "grad_x", "grad_residual", "grad_weight", "grad_bias"),
    )
