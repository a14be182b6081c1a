"""A token that is not finite spoils what depends on it, no other row and no token it is hidden from.

The expectation is worked out pair by pair from the mask: the result of a token depends on what it sees; the
gradient of q likewise, those of k and v on the queries that see them, and so on what those see.
"""

import pytest
import torch
from hstu_ops import mtgr_attention
from torch import Tensor

from benchmarks.shapes import Jagged

POISONS = (float("nan"), float("inf"))


def sees(rows: Jagged) -> Tensor:
    """Returns bool [T, T]: whether token i sees token j."""
    lengths = rows.offsets.diff().long()
    row = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), lengths)
    position = torch.arange(rows.num_tokens, device=row.device) - rows.offsets.long()[row]
    visible = (row[:, None] == row) & (position < rows.visible_end[:, None])
    return visible | torch.eye(rows.num_tokens, dtype=torch.bool, device=row.device)


def spoilt(rows: Jagged, poisoned: dict[str, list[int]]) -> dict[str, Tensor]:
    """Returns which tokens of the result and of each gradient may be other than finite.

    Args:
        rows: The mask.
        poisoned: Tokens of q, k, v and of the gradient of the result that are not finite.
    """
    visible = sees(rows)

    def of(name: str) -> Tensor:
        bad = torch.zeros(rows.num_tokens, dtype=torch.bool, device=visible.device)
        bad[poisoned.get(name, [])] = True
        return bad

    weight = visible & (of("q")[:, None] | of("k"))  # a pair's weight, and the slope of its score
    grad_score = weight | (visible & (of("grad")[:, None] | of("v")))
    return {
        "out": (weight | (visible & of("v"))).any(1),
        "grad_q": (grad_score | (visible & of("k"))).any(1),
        "grad_k": (grad_score | (visible & of("q")[:, None])).any(0),
        "grad_v": (weight | (visible & of("grad")[:, None])).any(0),
    }


def check(
    backend: str, rows: Jagged, poisoned: dict[str, list[int]], head_dim: int, dtype: torch.dtype
) -> None:
    """Asserts that with poison what may not be spoilt is what it is without, and all else is spoilt."""
    device = rows.offsets.device
    generator = torch.Generator(device=device).manual_seed(4)
    shape = (rows.num_tokens, 2, head_dim)
    names = ("q", "k", "v", "grad")
    drawn = {
        name: torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for name in names
    }

    def run(poison: float | None) -> list[Tensor]:
        parts = {name: part.clone() for name, part in drawn.items()}
        for name in poisoned if poison is not None else ():
            parts[name][poisoned[name]] = poison
        q, k, v = (parts[name].requires_grad_() for name in names[:3])
        out = mtgr_attention(q, k, v, rows.offsets, rows.visible_end, 0.2, 0.1, backend=backend)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), parts["grad"])]

    expected = spoilt(rows, poisoned)
    clean = run(None)
    for poison in POISONS:
        for (name, bad), ours, theirs in zip(expected.items(), run(poison), clean, strict=True):
            finite = ours.isfinite().flatten(1).all(1)
            assert torch.equal(finite, ~bad), (name, poison, (finite == bad).nonzero().flatten().tolist()[:9])
            scale = theirs.float().abs().max().item()
            tolerance = scale * (1e-5 if dtype in (torch.float32, torch.float64) else 0.02)
            torch.testing.assert_close(ours[~bad].float(), theirs[~bad].float(), atol=tolerance, rtol=0.0)


def kinds(rows: Jagged) -> dict[str, int]:
    """Returns a token of each kind of the second row."""
    start, end = rows.offsets[1:3].tolist()
    group = rows.group[start:end].tolist()
    return {
        "static": start + group.index(1) + 5,
        "real-time": start + max(i for i, g in enumerate(group) if g == 2),
        "candidate": start + group.index(3) + 11,
    }


CASES = [("qkv",), ("v",), ("k",), ("q",), ("grad",), ("qkv", "grad")]


def run_cases(backend: str, rows: Jagged, head_dim: int, dtype: torch.dtype, *, gradient: bool) -> None:
    for kind in kinds(rows).values():
        for case in CASES:
            names = [name for part in case for name in (part if part != "grad" else [part])]
            if gradient or "grad" not in names:
                check(backend, rows, {name: [kind] for name in names}, head_dim, dtype)
    third = list(range(*rows.offsets[2:4].tolist()))
    check(backend, rows, {name: third for name in "qkv"}, head_dim, dtype)


def past_a_tile(device: str) -> Jagged:
    """Returns rows none of which ends with a tile."""
    return Jagged.random(static=[70, 80, 60, 3], realtime=[20, 30, 40, 1], candidates=[40, 50, 30, 2]).to(
        device
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_poison_stays_where_it_is_seen(backend, dtype):
    run_cases(backend, past_a_tile("cpu"), 8, dtype, gradient=True)


@pytest.mark.slow
def test_poison_stays_where_it_is_seen_in_the_reference():
    run_cases("reference", past_a_tile("cpu"), 8, torch.float64, gradient=False)


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_poison_stays_where_it_is_seen_on_a_gpu(backend, head_dim):
    run_cases(backend, past_a_tile("cuda"), head_dim, torch.bfloat16, gradient=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_row_of_nan_between_two_others_on_a_gpu(backend, dtype):
    rows = Jagged.random(static=[80] * 3, realtime=[20] * 3, candidates=[30] * 3).to("cuda")
    check(backend, rows, {"v": list(range(130, 260))}, 256, dtype)
