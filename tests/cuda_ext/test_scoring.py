"""A block for scoring: norms folded into products, tiles of queries, and on Hopper its kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hstu_ops import mtgr_attention, scoring
from torch import Tensor
from torch.nn.functional import layer_norm

EPS = 1e-6
LENGTHS = (0, 1, 63, 64, 65, 127, 128, 129, 300, 700)


def norm(x: Tensor, group: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return layer_norm(x, x.shape[1:], eps=EPS) * scale[group.long()] + shift[group.long()]


def affine_of(dim: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    scale, shift = torch.randn(2, 4, dim, generator=generator) * 0.3
    return 1 + scale, shift


def test_a_norm_folded_into_a_product_is_the_same_function() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 96, generator=generator, dtype=torch.float64) * 3 + 1
    group = torch.randint(0, 4, (50,), generator=generator)
    scale, shift = (part.double() for part in affine_of(96, generator))
    weight = torch.randn(70, 96, generator=generator, dtype=torch.float64)
    bias = torch.randn(70, generator=generator, dtype=torch.float64)
    folded = scoring.fold(weight, bias, scale, shift, EPS)
    mean, rstd = x.mean(1, keepdim=True), (x.var(1, correction=0, keepdim=True) + EPS).rsqrt()
    mean_part, rest = folded.affine[group].double().unbind(-1)
    got = rstd * ((x * scale[group]) @ weight.t() - mean * mean_part) + rest
    assert (got - norm(x, group, scale, shift) @ weight.t() - bias).abs().max() < 1e-4  # affine is float32


TILES = """
import json, sys, torch
from hstu_ops import scoring
lengths, *held = json.loads(sys.argv[1])
offsets = torch.tensor([0, *lengths]).cumsum(0).int()
ends = (torch.arange(sum(lengths)) * 7919 % 500).int()
of = [None if cached is None else torch.tensor(cached).int() for cached in held]
made = [scoring.query_tiles(offsets, ends, one, size).tolist() for one in of for size in scoring.TILES]
print(json.dumps([ends.tolist(), *made]))
"""


@pytest.mark.slow  # a process that interprets
def test_tiles_of_queries_say_what_their_halves_see() -> None:
    of_rows = [None, [0, 5, 64, 70, 0, 1, 2, 3, 4, 999]]
    done = subprocess.run(
        [sys.executable, "-c", TILES, json.dumps([LENGTHS, *of_rows])],
        capture_output=True, text=True, check=True, env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    ends, *made = json.loads(done.stdout)
    cases = [(cached, size) for cached in of_rows for size in scoring.TILES]
    for (cached, size), tiles in zip(cases, made, strict=True):
        wanted, start = [], 0
        for row, length in enumerate(LENGTHS):
            for first in range(0, length, size):
                last = min(first + size, length)
                halves = [
                    ends[start + min(at, last) : start + min(at + 64, last)] for at in (first, first + 64)
                ]
                least = [min(half, default=1 << 30) for half in halves]
                rows, held = last - first, cached[row] if cached else 0
                most = max(end for half in halves for end in half)
                wanted.append([start + first, rows, first, length, start, held, most, *least, row])
            start += length
        assert [tile[:10] for tile in tiles[: len(wanted)]] == wanted
        assert [tile[1] for tile in tiles[len(wanted) :]] == [0] * (len(tiles) - len(wanted))


def test_parts_fill_the_processors_and_no_more() -> None:
    splits = [scoring.split_for(tokens, 1, 3, 132) for tokens in (250, 700, 1260, 3000, 10_000)]
    assert splits == [(64, 8), (128, 4), (128, 4), (128, 1), (128, 1)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 127, 129, 640, 1300])
@pytest.mark.parametrize("dim", [512, 768, 1024])
def test_products_norm_add_and_hand_on(dtype: torch.dtype, tokens: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x = (torch.randn(tokens, dim, generator=generator) * 2 + 0.5).to(dtype).cuda()
    group = torch.randint(0, 4, (tokens,), generator=generator).int().sort().values.cuda()
    scale, shift = (part.cuda() for part in affine_of(dim, generator))
    following = affine_of(dim, generator)[0].cuda()
    exact = x.double()
    scaled = (x * scale[group.long()]).to(dtype)
    halves = x.float().unflatten(1, (2, -1))
    normed = scoring.Normed(
        scaled=scaled, sums=torch.stack([halves.sum(-1), halves.square().sum(-1)], -1).contiguous()
    )
    for columns in (4 * dim, dim):
        weight = (torch.randn(columns, dim, generator=generator) / dim**0.5).to(dtype).cuda()
        bias = torch.randn(columns, generator=generator).to(dtype).cuda()
        folded = scoring.fold(weight, bias, scale, shift, EPS)
        wanted = norm(exact, group, scale.double(), shift.double()) @ weight.double().t() + bias.double()
        got = scoring.normed_product(normed, group, folded)
        assert close(got, wanted, dtype)
        if columns == dim:
            total = x.clone()
            handed = scoring.add_product(normed, group, folded, total, following)
            wanted += exact
            assert close(total, wanted, dtype)
            assert close(handed.scaled, wanted * following[group.long()], dtype)
            sums = handed.sums.double().sum(1)
            assert (sums[:, 0] - wanted.sum(1)).abs().max() < 0.05 * dim**0.5
            assert (sums[:, 1] / wanted.square().sum(1) - 1).abs().max() < 0.01


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Whether the greatest error is a few roundings of the largest number."""
    return bool((got - wanted).abs().max() < 4 * torch.finfo(dtype).eps * wanted.abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("size", scoring.TILES)
@pytest.mark.parametrize("is_cached", [False, True])
def test_gated_attention_in_parts_and_from_pages(
    dtype: torch.dtype, parts: int, size: int, is_cached: bool
) -> None:
    generator = torch.Generator().manual_seed(parts)
    heads, alpha, inv_n, page = 3, 1 / 16, 1 / 64, 64
    held = [0, 1, 64, 65, 300, 0, 900] if is_cached else [0] * 7
    own = [40, 1, 130, 200, 64, 0, 257]
    lengths = [a + b for a, b in zip(held, own, strict=True)]
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    whole = torch.randn(sum(lengths), 4, heads, 256, generator=generator).to(dtype)
    ends, is_own = [], []
    for some, length in zip(held, lengths, strict=True):
        least = max(some, length // 3)  # what is cached is seen by all
        seen = torch.randint(0, length + 1, (length,), generator=generator).clamp(min=least)
        ends.append(torch.minimum(seen, torch.maximum(torch.arange(length), torch.tensor(least))))
        is_own.append(torch.arange(length) >= some)
    visible_end, mine = torch.cat(ends).int().cuda(), torch.cat(is_own)
    u, v, q, k = whole.cuda().double().unbind(1)
    wanted = mtgr_attention(q, k, v, offsets.cuda(), visible_end, alpha, inv_n, backend="reference") * u
    cache, pages = pages_of(whole, offsets, held, page) if is_cached else (None, None)
    uvqk, queries = whole[mine].cuda(), torch.tensor([0, *own]).cumsum(0).int().cuda()
    group = torch.randint(0, 4, (len(uvqk),), generator=generator).int().cuda()
    scale = affine_of(heads * 256, generator)[0].cuda()
    cached = torch.tensor(held).int().cuda() if is_cached else None
    seen_end = visible_end[mine.cuda()].contiguous()
    seen = scoring.Seen(
        tiles=scoring.query_tiles(queries, seen_end, cached, size),
        visible_end=seen_end, group=group, pages=pages, parts=parts,
    )  # fmt: skip
    got = scoring.gated_attention(uvqk, seen, scale, cache, alpha, inv_n)
    exact = wanted[mine.cuda()].flatten(1)
    assert close(got.scaled, exact * scale[group.long()], dtype)
    sums = got.sums.double().sum(1)
    assert (sums[:, 1] / exact.square().sum(1) - 1).abs().max() < 0.03
    assert (sums[:, 0] - exact.sum(1)).abs().max() < 4 * torch.finfo(dtype).eps * exact.abs().sum(1).max()


def pages_of(whole: Tensor, offsets: Tensor, held: list[int], page: int) -> tuple[Tensor, Tensor]:
    """Keys and values of leading tokens in pages, out of order, and where they are."""
    heads_dim = whole.shape[2] * whole.shape[3]
    cache = torch.full((40, 2, 2, page, heads_dim), 3.0, dtype=whole.dtype)
    pages = torch.zeros(len(held), 20, dtype=torch.int32)
    free = list(range(40))[::-2] + list(range(0, 40, 2))
    for row, some in enumerate(held):
        for number, first in enumerate(range(0, some, page)):
            pages[row, number] = free[0]
            last = min(first + page, some)
            tokens = whole[offsets[row] + first : offsets[row] + last]
            cache[free[0], 1, 0, : last - first] = tokens[:, 3].flatten(1)
            cache[free[0], 1, 1, : last - first] = tokens[:, 1].flatten(1)
            free.pop(0)
    return cache.cuda()[:, 1], pages.cuda()
