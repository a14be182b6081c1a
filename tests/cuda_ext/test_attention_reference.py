"""The reference against masks drawn by brute force from timestamps, and numbers worked out by hand."""

import itertools
import math

import pytest
import torch
from hstu_ops import mtgr_attention
from hstu_ops.reference import visible_mask

from tests.cuda_ext.operator_cases import batch


def brute_force_mask(static: int, event_times: list[int], shown_times: list[int]) -> list[list[bool]]:
    """The three rules of the dynamic mask, token by token (docs: static, real-time, candidate)."""
    kinds = ["S"] * static + ["R"] * len(event_times) + ["C"] * len(shown_times)
    times = [0] * static + event_times + shown_times
    mask = []
    for i, kind in enumerate(kinds):
        row = []
        for j, other in enumerate(kinds):
            if other == "S" or i == j:
                row.append(True)
            elif other == "R" and kind != "S":
                row.append(times[j] < times[i])
            else:
                row.append(False)
        mask.append(row)
    return mask


def visible_ends(static: int, event_times: list[int], shown_times: list[int]) -> list[int]:
    """What a sample stores: the static tokens, for the others also the real-time tokens strictly earlier."""
    return [static] * static + [static + sum(e < t for e in event_times) for t in event_times + shown_times]


@pytest.mark.parametrize(
    ("static", "events", "shown"),
    [
        (2, [4, 6], [3, 5, 7]),  # the example of the paper: target3, r2, target2, r1, target1
        (3, [5, 5, 9], [5, 9, 10, 1]),  # equal times are not visible
        (0, [1, 2], [2, 3]),
        (4, [], [1, 1]),
        (4, [3], []),
        (0, [], [8, 9]),
    ],
)
def test_visible_end_draws_the_mask_of_the_three_rules(static, events, shown):
    mask = visible_mask(torch.tensor(visible_ends(static, events, shown)))
    assert mask.tolist() == brute_force_mask(static, events, shown)


def test_paper_example_literally():
    mask = visible_mask(torch.tensor(visible_ends(2, [4, 6], [7, 5, 3]))).int().tolist()
    assert mask == [
        [1, 1, 0, 0, 0, 0, 0],  # s2
        [1, 1, 0, 0, 0, 0, 0],  # s1
        [1, 1, 1, 0, 0, 0, 0],  # r2
        [1, 1, 1, 1, 0, 0, 0],  # r1
        [1, 1, 1, 1, 1, 0, 0],  # target1
        [1, 1, 1, 0, 0, 1, 0],  # target2
        [1, 1, 0, 0, 0, 0, 1],  # target3
    ]


def test_two_tokens_by_hand():
    q = torch.tensor([[[2.0]], [[3.0]]], dtype=torch.float64)
    k = torch.tensor([[[0.5]], [[1.0]]], dtype=torch.float64)
    v = torch.tensor([[[10.0]], [[100.0]]], dtype=torch.float64)
    offsets, end = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([1, 1], dtype=torch.int32)
    out = mtgr_attention(q, k, v, offsets, end, 0.5, 0.25, backend="reference").flatten().tolist()

    def silu(x: float) -> float:
        return x / (1 + math.exp(-x))

    assert out[0] == pytest.approx(silu(0.5 * 1.0) * 0.25 * 10)  # sees itself, once
    assert out[1] == pytest.approx(silu(0.5 * 1.5) * 0.25 * 10 + silu(0.5 * 3.0) * 0.25 * 100)


@pytest.mark.parametrize("name", ["mixed", "odd lengths", "empty rows"])
def test_reference_is_the_dense_formula_row_by_row(name):
    rows = batch(name)
    q, k, v = torch.randn(3, rows.num_tokens, 2, 8, dtype=torch.float64).unbind(0)
    out = mtgr_attention(q, k, v, rows.offsets, rows.visible_end, 0.3, 0.1, backend="reference")
    expected = torch.zeros_like(out)
    bounds = rows.offsets.tolist()
    for start, end in itertools.pairwise(bounds):
        for i in range(start, end):
            seen = sorted({*range(start, start + int(rows.visible_end[i])), i})
            for n in range(2):
                scores = 0.3 * (k[seen, n] @ q[i, n])
                expected[i, n] = (scores * torch.sigmoid(scores) * 0.1) @ v[seen, n]
    torch.testing.assert_close(out, expected)


def test_rows_of_equal_length_are_batched_without_mixing():
    row = torch.randn(5, 3, 1, 4, dtype=torch.float64)
    offsets = torch.tensor([0, 5, 10], dtype=torch.int32)
    end = torch.tensor([3, 3, 3, 3, 4] * 2, dtype=torch.int32)
    doubled = torch.cat([row, 2 * row])
    both = mtgr_attention(*doubled.unbind(1), offsets, end, 1.0, 1.0, backend="reference")
    alone = mtgr_attention(*(2 * row).unbind(1), offsets[:2], end[:5], 1.0, 1.0, backend="reference")
    torch.testing.assert_close(both[5:], alone)


def test_reference_differentiates_twice():
    offsets = torch.tensor([0, 4, 4, 7], dtype=torch.int32)
    end = torch.tensor([2, 2, 2, 3, 0, 3, 1], dtype=torch.int32)
    inputs = [torch.randn(7, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attention(q, k, v):
        return mtgr_attention(q, k, v, offsets, end, 0.7, 0.3, backend="reference")

    assert torch.autograd.gradcheck(attention, inputs)
    assert torch.autograd.gradgradcheck(attention, inputs)
