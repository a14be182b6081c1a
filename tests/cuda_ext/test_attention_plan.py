"""A plan made once serves any number of calls: equal bits with it and without, forward and backward."""

import pytest
import torch
from hstu_ops import attention_plan, gated_attention, mtgr_attention
from hstu_ops.attention import _fake_plan

from benchmarks.shapes import Jagged
from tests.cuda_ext.operator_cases import batch


def test_other_backends_need_no_plan():
    rows = batch("mixed")
    assert attention_plan(rows.offsets, rows.visible_end, dtype=torch.float32, head_dim=64) is None


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("static", [[100, 0, 1, 300], [2500, 40, 700]])
def test_a_plan_serves_many_calls(head_dim, static):
    pytest.importorskip("triton")
    few = [7] * len(static)
    rows = Jagged.random(static=static, realtime=few, candidates=[70] * len(static)).to("cuda")
    kind = {"dtype": torch.bfloat16, "head_dim": head_dim, "backend": "cutlass"}
    plan = attention_plan(rows.offsets, rows.visible_end, **kind)
    assert plan is not None
    assert plan.shape == _fake_plan(rows.offsets, rows.visible_end).shape
    torch.manual_seed(0)
    uvqk = torch.randn(rows.num_tokens, 4, 2, head_dim, device="cuda").bfloat16().requires_grad_()
    weight, bias = torch.randn(2, 4, 2 * head_dim, device="cuda").unbind(0)

    def run(plan: torch.Tensor | None) -> list[torch.Tensor]:
        _, v, q, k = uvqk.unbind(1)
        mask = (rows.offsets, rows.visible_end)
        out = mtgr_attention(q, k, v, *mask, 0.1, 0.1, backend="cutlass", plan=plan)
        norm = (rows.group, weight, bias, 0.1, 0.1, 1e-5)
        y = gated_attention(uvqk, *mask, *norm, backend="cutlass", plan=plan)
        grads = [torch.autograd.grad(result, uvqk, torch.ones_like(result))[0] for result in (out, y)]
        return [out.detach(), y.detach(), *grads]

    expected = run(None)
    for _ in range(3):
        for ours, theirs in zip(run(plan), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.gpu
def test_a_plan_of_other_rows_is_refused():
    rows, other = batch("mixed", "cuda"), batch("one row of 1100", "cuda")
    kind = {"dtype": torch.bfloat16, "head_dim": 64, "backend": "cutlass"}
    plan = attention_plan(other.offsets, other.visible_end, **kind)
    q = torch.randn(rows.num_tokens, 2, 64, device="cuda").bfloat16()
    with pytest.raises(ValueError, match=r"plan must be as hstu_ops\.attention_plan makes it"):
        mtgr_attention(q, q, q, rows.offsets, rows.visible_end, 0.1, 0.1, backend="cutlass", plan=plan)
