"""MTGR's dense part in the operations that an inference engine has: products, gathers, elementwise ones.

    logits = mtgr_network(operations, ranker, torch.float16)

`Operations` says what is needed; TensorRT's network API is one of them (`model.serving.tensorrt`), PyTorch
another, with which tests hold this network against the ranker. It is the same function as `Ranker.forward` in
inference, but for what an engine gains by: the last block computes queries, gates and outputs of candidates
alone. The mask is drawn once, from where each token's row starts and how far it sees, so that jagged rows lie
end to end here, too, and padding is a row like others.

| input | what |
|---|---|
| `embeddings_<group>` | float32 `[tokens, sum of widths]`, as in `flat_inputs` |
| `numbers_<group>` | float32 `[F, tokens]` |
| `position`, `first`, `visible_end`, `group` | int32 `[T]`: 0 to T - 1, where the token's row starts, ... |
| `source`, `candidates` | int32 `[T]`, `[C]` |
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, Q queries, C candidates, N heads, D width)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.data.layout import GROUPS
from model.embeddings.numbers import CLIP
from model.rankers.inputs import Embeddings
from model.rankers.mtgr import Block, GroupLayerNorm, MtgrRanker
from spark_jobs.contract.features import Group

Value = Any  # a tensor of the engine
INDEXES = ("position", "first", "visible_end", "group", "source", "candidates")


class Operations(Protocol):
    """What an engine computes; axes count from 0, of elementwise ones shapes are broadcast."""

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Value:
        """An input by its name; -1 in its shape is any number."""

    def constant(self, tensor: Tensor) -> Value:
        """A weight in its dtype."""

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        """`x` in another dtype."""

    def binary(self, name: str, x: Value, y: Value) -> Value:
        """`add`, `sub`, `mul`; `less`, `equal`, `and`, `or` of booleans."""

    def unary(self, name: str, x: Value) -> Value:
        """`sqrt`, `reciprocal`, `isnan`, `sigmoid`."""

    def clip(self, x: Value, limit: float) -> Value:
        """`x` within `[-limit, limit]`."""

    def select(self, condition: Value, x: Value, y: Value) -> Value:
        """`x` where the condition holds, else `y`."""

    def matmul(self, x: Value, y: Value, *, transposed: bool) -> Value:
        """Product over the last two axes, `y` transposed or as it is."""

    def gather(self, x: Value, index: Value) -> Value:
        """Entries of axis 0 by int32 `[n]`."""

    def take(self, x: Value, index: int) -> Value:
        """Entry `index` of axis 1, which goes."""

    def concatenate(self, parts: Sequence[Value], axis: int) -> Value:
        """Parts end to end."""

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """`x` in another shape; -1 is what is left."""

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """`x` with its axes in another order."""

    def mean(self, x: Value) -> Value:
        """Mean over the last axis, which stays."""


def network_inputs(batch: JaggedBatch, embeddings: Embeddings) -> dict[str, Tensor]:
    """What the network takes of a batch that is laid out as one part, on its device."""
    where = batch.layout()
    lengths = where.offsets.diff()
    first = where.offsets[:-1].repeat_interleave(lengths, output_size=where.num_tokens)
    position = torch.arange(where.num_tokens, device=first.device)
    indexes = (position, first, where.visible_end, where.group, where.source, where.candidates)
    return {
        **{f"embeddings_{group}": torch.cat(embeddings[group], dim=1) for group in GROUPS},
        **{f"numbers_{group}": batch.numbers[group] for group in GROUPS},
        **{name: tensor.int() for name, tensor in zip(INDEXES, indexes, strict=True)},
    }


def mtgr_network(ops: Operations, ranker: MtgrRanker, half: torch.dtype) -> Value:
    """Logits of click and conversion, float32 `[2, C]`.

    Args:
        ops: What computes.
        ranker: Whose weights become constants.
        half: Dtype of products and of what lies between them; statistics, standardised numbers and the mask's
            arithmetic are not in it.

    Raises:
        ValueError: The ranker has another mask or norm than the paper's.
    """
    if (ranker.mask, ranker.norm) != ("dynamic", "group"):
        raise ValueError(
            f"mask {ranker.mask!r} and norm {ranker.norm!r} have no network: dynamic and group do"
        )
    return _Network(ops, ranker, half).logits()


class _Network:
    def __init__(self, ops: Operations, ranker: MtgrRanker, half: torch.dtype) -> None:
        self.ops, self.ranker, self.half = ops, ranker, half
        widths, columns = ranker.inputs.embeddings.widths, ranker.inputs.scaler.columns
        self.embeddings = {
            group: ops.input(f"embeddings_{group}", (-1, sum(widths(group))), torch.float32)
            for group in GROUPS
        }
        self.numbers = {
            group: ops.input(f"numbers_{group}", (len(columns[group]), -1), torch.float32) for group in GROUPS
        }
        self.index = {name: ops.input(name, (-1,), torch.int32) for name in INDEXES}

    def logits(self) -> Value:
        ops, index = self.ops, self.index
        tokens = [self._profile(), *(self._sequence(group) for group in GROUPS[1:])]
        x_TD = ops.gather(ops.concatenate(tokens, 0), index["source"])
        queries = {name: ops.gather(index[name], index["candidates"]) for name in INDEXES[:4]}
        *blocks, last = (block for block in self.ranker.blocks if isinstance(block, Block))
        if blocks:
            mask_1TT = self._mask(index, last.inv_n)
        for block in blocks:
            normed_TD = self._norm(x_TD, block.norm_in, index["group"])
            u, v, q, k = self._heads_of(normed_TD, block.uvqk.weight, block.uvqk.bias, 4, block)
            added_TD = self._attended(block, u, v, q, k, mask_1TT, index["group"])
            x_TD = ops.binary("add", x_TD, added_TD)
        normed_TD = self._norm(x_TD, last.norm_in, index["group"])
        normed_CD = ops.gather(normed_TD, index["candidates"])
        weight, bias = last.uvqk.weight.chunk(4), last.uvqk.bias.chunk(4)
        u, q = self._heads_of(normed_CD, torch.cat(weight[0::2]), torch.cat(bias[0::2]), 2, last)
        v, k = self._heads_of(normed_TD, torch.cat(weight[1::2]), torch.cat(bias[1::2]), 2, last)
        added_CD = self._attended(last, u, v, q, k, self._mask(queries, last.inv_n), queries["group"])
        x_CD = ops.binary("add", ops.gather(x_TD, index["candidates"]), added_CD)
        return self._scored(x_CD)

    def _profile(self) -> Value:
        """Tokens `[B * F, D]`: ids in order, then numbers."""
        ops, profile = self.ops, self.ranker.inputs.profile
        layers = [layer for layer in profile.projections if isinstance(layer, nn.Linear)]
        weight = torch.block_diag(*(layer.weight for layer in layers))  # type: ignore[no-untyped-call]
        d_model = layers[0].out_features
        x = ops.cast(self.embeddings[Group.PROFILE], self.half)
        of_ids = self._linear(x, weight, torch.cat([layer.bias for layer in layers]))
        z_BF1 = ops.reshape(self._standardised(Group.PROFILE), (-1, len(profile.weight_FD), 1))
        scale, shift = (ops.constant(part.unsqueeze(0)) for part in (profile.weight_FD, profile.bias_FD))
        of_numbers = ops.cast(ops.binary("add", ops.binary("mul", z_BF1, scale), shift), self.half)
        tokens = [ops.reshape(of_ids, (-1, len(layers), d_model)), of_numbers]
        return ops.reshape(ops.concatenate(tokens, 1), (-1, d_model))

    def _sequence(self, group: Group) -> Value:
        """Tokens `[tokens, D]` of a group."""
        ops, inputs = self.ops, self.ranker.inputs
        x_TW = ops.concatenate([self.embeddings[group], self._standardised(group)], 1)
        if group is Group.CANDIDATE and inputs.kept_W is not None:
            x_TW = ops.binary("mul", x_TW, ops.constant(inputs.kept_W.view(1, -1)))
        x_TW = ops.cast(x_TW, self.half)
        tokens_TD = self._mlp(x_TW, inputs.candidate if group is Group.CANDIDATE else inputs.behaviour)
        if inputs.shared is None:
            return tokens_TD
        width = sum(inputs.embeddings.widths(group)) + len(inputs.scaler.columns[group])
        columns = torch.cat([torch.arange(width)[run] for run in inputs.item_columns[group]])
        weight = inputs.shared.weight.new_zeros(len(inputs.shared.weight), width)
        weight[:, columns] = inputs.shared.weight
        return ops.binary("add", tokens_TD, self._product(x_TW, weight))

    def _standardised(self, group: Group) -> Value:
        """Numbers `[tokens, F]`; what is not known is the mean, 0."""
        ops, scaler = self.ops, self.ranker.inputs.scaler
        columns = scaler.columns[group]
        mean, std, fitted = (
            part[columns].view(1, -1) for part in (scaler.mean_F, scaler.std_F, scaler.fitted_F)
        )
        x = ops.transpose(self.numbers[group], (1, 0))
        known = ops.select(ops.unary("isnan", x), ops.constant(mean), x)
        z = ops.binary("mul", ops.binary("sub", known, ops.constant(mean)), ops.constant(1 / std))
        return ops.binary("mul", ops.clip(z, CLIP), ops.constant(fitted))

    def _mask(self, queries: dict[str, Value], inv_n: float) -> Value:
        """`inv_n` where a query sees a key, else 0: `[1, Q, T]`."""
        ops = self.ops
        position, first, visible_end = (ops.reshape(queries[name], (1, -1, 1)) for name in INDEXES[:3])
        key, first_of_key = (ops.reshape(self.index[name], (1, 1, -1)) for name in INDEXES[:2])
        before = ops.binary("less", ops.binary("sub", key, first), visible_end)
        sees = ops.binary("or", before, ops.binary("equal", key, position))
        sees = ops.binary("and", sees, ops.binary("equal", first_of_key, first))
        weight, nothing = (torch.full((1, 1, 1), value, dtype=self.half) for value in (inv_n, 0.0))
        return ops.select(sees, ops.constant(weight), ops.constant(nothing))

    def _heads_of(self, x_TD: Value, weight: Tensor, bias: Tensor, parts: int, block: Block) -> list[Value]:
        """Parts of one product, `[T, N, d]` each."""
        joined = self.ops.reshape(
            self._linear(x_TD, weight, bias), (-1, parts, block.num_heads, block.head_dim)
        )
        return [self.ops.take(joined, part) for part in range(parts)]

    def _attended(
        self, block: Block, u: Value, v: Value, q: Value, k: Value, mask: Value, group: Value
    ) -> Value:
        """What a block adds to its queries, `[Q, D]`."""
        ops, width = self.ops, block.num_heads * block.head_dim
        q, k, v = (ops.transpose(part, (1, 0, 2)) for part in (q, k, v))
        alpha = ops.constant(torch.full((1, 1, 1), block.alpha, dtype=self.half))
        scores_NQT = ops.matmul(ops.binary("mul", q, alpha), k, transposed=True)
        weights_NQT = ops.binary("mul", self._silu(scores_NQT), mask)
        out = ops.transpose(ops.matmul(weights_NQT, v, transposed=False), (1, 0, 2))
        gate = ops.cast(ops.reshape(u, (-1, width)), torch.float32)
        gated = ops.binary("mul", ops.cast(ops.reshape(out, (-1, width)), torch.float32), gate)
        return self._linear(self._norm(gated, block.norm_out, group), block.out.weight, block.out.bias)

    def _norm(self, x: Value, norm: GroupLayerNorm, group: Value) -> Value:
        """Group layer norm, its statistics in float32."""
        weight, bias = (
            self.ops.gather(self.ops.constant(part), group) for part in (norm.weight_GD, norm.bias_GD)
        )
        return self.ops.cast(self._normed(x, weight, bias, norm.eps), self.half)

    def _normed(self, x: Value, weight: Value, bias: Value, eps: float) -> Value:
        ops = self.ops
        x = ops.cast(x, torch.float32)
        centered = ops.binary("sub", x, ops.mean(x))
        variance = ops.mean(ops.binary("mul", centered, centered))
        shifted = ops.binary("add", variance, ops.constant(torch.full((1, 1), eps)))
        z = ops.binary("mul", centered, ops.unary("reciprocal", ops.unary("sqrt", shifted)))
        return ops.binary("add", ops.binary("mul", z, weight), bias)

    def _scored(self, x_CD: Value) -> Value:
        ops, heads = self.ops, self.ranker.heads
        weight, bias = (ops.constant(part.view(1, -1)) for part in (heads.norm.weight, heads.norm.bias))
        z = ops.cast(self._normed(x_CD, weight, bias, heads.norm.eps), self.half)
        towers = [self._mlp(z, tower) for tower in heads.towers if isinstance(tower, nn.Sequential)]
        return ops.cast(ops.transpose(ops.concatenate(towers, 1), (1, 0)), torch.float32)

    def _linear(self, x: Value, weight: Tensor, bias: Tensor) -> Value:
        y = self._product(x, weight)
        return self.ops.binary("add", y, self.ops.constant(bias.to(self.half).view(1, -1)))

    def _product(self, x: Value, weight: Tensor) -> Value:
        return self.ops.matmul(x, self.ops.constant(weight.to(self.half)), transposed=True)

    def _silu(self, x: Value) -> Value:
        return self.ops.binary("mul", x, self.ops.unary("sigmoid", x))

    def _mlp(self, x: Value, layers: nn.Sequential) -> Value:
        for layer in layers:
            x = self._linear(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else self._silu(x)
        return x
