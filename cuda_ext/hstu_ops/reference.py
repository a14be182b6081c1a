"""Both operators in plain PyTorch: what every kernel is held against.

Written to be read and checked, not to be fast: it runs in any floating dtype (float64 for proofs),
differentiates by autograd (twice, if asked) and builds no mask larger than a few rows'. Reading the offsets
costs a synchronisation.
"""
# ruff: noqa: N803, N806 (a name carries its shape: T tokens, N heads, D width, B rows, G groups, L longest)

import itertools
from collections import defaultdict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Rows of equal length share one batched product, up to this many attention scores at a time.
_MAX_SCORES = 1 << 24


def visible_mask(visible_end_L: Tensor) -> Tensor:
    """Draws the mask of one row (or of rows of one length): `[..., L]` to bool `[..., L, L]`.

    Token i sees the leading `visible_end[i]` tokens of its row, and itself. With two static tokens s, two
    real-time tokens r and two candidates c, the first of them shown between r1 and r2, `visible_end` is
    2 2 2 3 3 4:

             s0 s1 r1 r2 c0 c1
        s0    x  x
        s1    x  x
        r1    x  x  x
        r2    x  x  x  x
        c0    x  x  x     x
        c1    x  x  x  x     x
    """
    positions = torch.arange(visible_end_L.shape[-1], device=visible_end_L.device)
    return (positions < visible_end_L.unsqueeze(-1)) | (positions == positions.unsqueeze(-1))


def _rows(part_TND: Tensor, place_RL: Tensor) -> Tensor:
    """Takes rows of equal length, `[R, L, N, D]`; its derivative adds by index, which is fast."""
    return part_TND.index_select(0, place_RL.flatten()).unflatten(0, place_RL.shape)  # type: ignore[no-untyped-call,no-any-return]


def mtgr_attention_reference(
    q_TND: Tensor,
    k_TND: Tensor,
    v_TND: Tensor,
    offsets_B1: Tensor,
    visible_end_T: Tensor,
    alpha: float,
    inv_n: float,
) -> Tensor:
    """Computes `SiLU(alpha q k^T) * inv_n`, masked, times v, by rows; arguments as `mtgr_attention`."""
    bounds = offsets_B1.tolist()
    parts = (q_TND, k_TND, v_TND)
    finite = torch.stack([part.detach().isfinite().flatten(1).all(1) for part in parts]).all(0).tolist()
    starts_by_length: dict[int, list[int]] = defaultdict(list)
    places, outputs = [], []
    for start, end in itertools.pairwise(bounds):
        if all(finite[start:end]):
            starts_by_length[end - start].append(start)
        else:
            places.append(torch.arange(start, end, device=q_TND.device))
            q, k, v = (part[start:end] for part in parts)
            outputs.append(_poisoned_row(q, k, v, visible_end_T[start:end], alpha, inv_n))
    starts_by_length.pop(0, None)
    if not starts_by_length and not places:
        return q_TND * k_TND * v_TND  # no tokens: nothing to compute, yet still a function of its inputs
    for length, starts in starts_by_length.items():
        rows_at_once = max(1, _MAX_SCORES // (length * length * q_TND.shape[1]))
        within = torch.arange(length, device=q_TND.device)
        for first in range(0, len(starts), rows_at_once):
            chunk = torch.tensor(starts[first : first + rows_at_once], device=q_TND.device)
            place_RL = chunk.unsqueeze(1) + within
            q, k, v = (_rows(part, place_RL) for part in (q_TND, k_TND, v_TND))
            scores = torch.einsum("rind,rjnd->rnij", q, k)
            weights = F.silu(scores * alpha) * inv_n
            weights = weights.masked_fill(~visible_mask(visible_end_T[place_RL]).unsqueeze(1), 0)
            out = torch.einsum("rnij,rjnd->rind", weights, v)
            places.append(place_RL.flatten())
            outputs.append(out.flatten(0, 1))
    order = torch.cat(places).argsort()
    return torch.cat(outputs).index_select(0, order)


def _poisoned_row(
    q_LND: Tensor, k_LND: Tensor, v_LND: Tensor, visible_end_L: Tensor, alpha: float, inv_n: float
) -> Tensor:
    """Computes a row that holds NaN or infinity, each token from what it sees and nothing else.

    A mask would not do: it hides a value by a weight of zero, and zero times NaN is NaN. Tokens that see
    equally far share a product.
    """
    places, outputs = [], []
    for end in sorted(set(visible_end_L.tolist())):
        place_R = (visible_end_L == end).nonzero().squeeze(1)
        q_RND, own_k_RND, own_v_RND = (part[place_R] for part in (q_LND, k_LND, v_LND))
        weights = F.silu(torch.einsum("rnd,jnd->nrj", q_RND, k_LND[:end]) * alpha) * inv_n
        own_weights = F.silu((q_RND * own_k_RND).sum(-1, keepdim=True) * alpha) * inv_n
        own_weights = own_weights.masked_fill((place_R < end).view(-1, 1, 1), 0)
        places.append(place_R)
        outputs.append(torch.einsum("nrj,jnd->rnd", weights, v_LND[:end]) + own_weights * own_v_RND)
    return torch.cat(outputs).index_select(0, torch.cat(places).argsort())


def group_layer_norm_reference(
    x_TD: Tensor,
    group_T: Tensor,
    weight_GD: Tensor,
    bias_GD: Tensor,
    eps: float,
    gate_TD: Tensor | None = None,
) -> Tensor:
    """Normalises each token over its width, with its group's scale and shift; as `group_layer_norm`."""
    statistics = torch.float64 if x_TD.dtype == torch.float64 else torch.float32
    z = x_TD.to(statistics)
    if gate_TD is not None:
        z = z * gate_TD.to(statistics)
    centered = z - z.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps)
    group = group_T.long()
    y = centered * rstd * F.embedding(group, weight_GD.to(statistics)) + F.embedding(
        group, bias_GD.to(statistics)
    )
    return y.to(x_TD.dtype)
