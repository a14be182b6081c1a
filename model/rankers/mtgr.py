"""MTGR: tokens, blocks, and the CTR and CTCVR of every candidate of a row in one pass.

Each profile feature is one token; each behaviour is one token by the behaviours' MLP, from ids, side info,
action, context and recency; each candidate is one token by the candidates' MLP, from item, cross features,
statistics and context (arXiv 2505.18654, 3.1 to 3.3). Candidates never see each other. A block is

    X~      = GLN(X)
    U,V,Q,K = linear(X~)
    V~      = (SiLU(alpha Q K^T) / n) * M  V
    X       = linear(GLN(V~ * U)) + X

What stands between the two products is one call of `hstu_ops`; the mask is never built, only the count of
visible tokens.
"""
# ruff: noqa: N803, N806 (names carry their shape: B rows, T tokens, C candidates, N heads, D width, G groups)

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from hstu_ops import (
    add_group_layer_norm,
    attention_plan,
    defers_bias_gradient,
    gated_attention,
    group_layer_norm,
    linear,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.data.batch import JaggedBatch
from model.data.layout import GROUPS, Layout
from model.rankers.heads import Heads
from model.rankers.inputs import Embeddings, take_rows
from model.rankers.protocol import Ranker, RankerConfig, require_positive
from spark_jobs.contract.features import Dataset, Group

MASKS = ("dynamic", "causal", "full")
NORMS = ("group", "layer")


@dataclass(frozen=True, kw_only=True)
class MtgrConfig(RankerConfig):
    """Sizes of MTGR.

    Args:
        num_blocks: HSTU blocks.
        inv_n: 1 / n of `SiLU(QK^T) / n`: a constant, so that scores do not depend on the batch.
        norm_eps: Added to the variance in group layer norm.
        ops_backend: Backend of `hstu_ops`: `auto`, `reference`, `cpu`, `triton` or `cutlass`.
        block_start: Share of its usual size that the last product of each block starts with. Group layer norm
            lifts whatever attention gives to unit variance, so that at 1 each block would bury what tells
            candidates apart under a random projection of it.
        score_start: What the scores `alpha QK^T` start around, by equal biases of Q and K: SiLU weighs
            behaviours about equally then, a mean of them, where scores around 0 weigh them by chance.
        mask: `dynamic`, the paper's; or, to see what it is worth, `causal`: the static tokens see earlier
            ones only; `full`: all tokens see their whole row, so that candidates know what came later.
        norm: `group`, the paper's; or `layer`: all tokens share one scale and shift.
    """

    takes_padded: ClassVar[bool] = True

    architecture: str = field(init=False, default="mtgr")
    num_blocks: int
    inv_n: float = 1 / 128
    norm_eps: float = 1e-6
    ops_backend: str = "auto"
    block_start: float = 0.1
    score_start: float = 1.0
    mask: str = "dynamic"
    norm: str = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "num_blocks", "inv_n", "norm_eps", "block_start")
        if self.score_start < 0:
            raise ValueError(f"score_start is {self.score_start}; it must not be negative")
        for name, known in (("mask", MASKS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}")

    def flops(self, num_tokens: int) -> int:
        """Forward FLOPs of the blocks for a row of `num_tokens`, without mask sparsity (FLOP = 2 MAC).

        `blocks * (10 N d^2 + 4 N^2 d)`: five d x d projections (U, V, Q, K, out) and two products with the
        sequence.
        """
        n, d = num_tokens, self.d_model
        return self.num_blocks * (10 * n * d * d + 4 * n * n * d)

    def visible_flops(self, num_tokens: int, num_pairs: int) -> int:
        """Forward FLOPs of the blocks: `blocks * (10 N d^2 + 4 pairs d)`."""
        d = self.d_model
        return self.num_blocks * (10 * num_tokens * d * d + 4 * num_pairs * d)

    def build(self, dataset: Dataset, generator: torch.Generator) -> Ranker:
        """The ranker; see `RankerConfig.build`."""
        return MtgrRanker(dataset, self, generator)


class GroupLayerNorm(nn.Module):
    """Layer norm over a token's width, with scale and shift by token group."""

    def __init__(self, config: MtgrConfig) -> None:
        super().__init__()
        num_groups = len(GROUPS) if config.norm == "group" else 1
        self.weight_GD = nn.Parameter(torch.ones(num_groups, config.d_model))
        self.bias_GD = nn.Parameter(torch.zeros(num_groups, config.d_model))
        self.eps = config.norm_eps
        self.backend = config.ops_backend

    def forward(
        self, x_TD: Tensor, added_TD: Tensor | None, added_bias_D: Tensor | None, group_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The sum of `[T, D]` and what is added, and its norm; statistics in float32."""
        parameters = group_T, self.weight_GD, self.bias_GD, self.eps
        if added_TD is None:
            return x_TD, group_layer_norm(x_TD, *parameters, backend=self.backend)
        return add_group_layer_norm(added_TD, x_TD, *parameters, x_bias_D=added_bias_D, backend=self.backend)


class Block(nn.Module):
    """One MTGR block; no feed-forward layer and no relative bias, as in the paper."""

    def __init__(self, config: MtgrConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.alpha = config.head_dim**-0.5
        self.inv_n = config.inv_n
        self.backend = config.ops_backend
        self.norm_in = GroupLayerNorm(config)
        self.uvqk = nn.Linear(config.d_model, 4 * config.d_model)
        self.norm_out = GroupLayerNorm(config)  # its parameters; it runs inside gated_attention
        self.out = nn.Linear(config.d_model, config.d_model)
        self._start(config)

    @torch.no_grad()
    def _start(self, config: MtgrConfig) -> None:
        """Makes the block a small step from the identity, whose attention is about a mean."""
        self.out.weight.mul_(config.block_start)
        self.out.bias.mul_(config.block_start)
        of_q_and_k = self.uvqk.bias[2 * config.d_model :]
        # alpha q k of the biases alone: head_dim^-0.5 * head_dim * bias^2.
        of_q_and_k += config.score_start**0.5 * config.head_dim**-0.25
        if config.shares_items:
            *_, q_DD, k_DD = self.uvqk.weight.chunk(4)
            k_DD.copy_(q_DD)

    def plan(self, x_TD: Tensor, tokens: Layout) -> Tensor | None:
        """Makes what the attention kernels know of the mask: once for all blocks."""
        return attention_plan(
            tokens.offsets,
            tokens.visible_end,
            dtype=x_TD.dtype,
            head_dim=self.head_dim,
            backend=self.backend,
        )

    def forward(
        self,
        x_TD: Tensor,
        added_TD: Tensor | None,
        added_bias_D: Tensor | None,
        tokens: Layout,
        plan: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Transforms `[T, D]`, which is still to be added up: what the block before got, and what it adds.

        Returns:
            The same of this block. The sum is left to the next one, whose norm takes it up in one pass, and,
            where `defers_bias_gradient`, gives the bias of this one its gradient.
        """
        x_TD, normed_TD = self.norm_in(x_TD, added_TD, added_bias_D, tokens.group)
        apart, bias = defers_bias_gradient(normed_TD), self.uvqk.bias
        uvqk_TD = linear(normed_TD, self.uvqk.weight, bias.detach() if apart else bias)
        gated_TD = gated_attention(
            uvqk_TD.view(-1, 4, self.num_heads, self.head_dim),
            tokens.offsets,
            tokens.visible_end,
            tokens.group,
            self.norm_out.weight_GD,
            self.norm_out.bias_GD,
            self.alpha,
            self.inv_n,
            self.norm_out.eps,
            backend=self.backend,
            deterministic=True,
            plan=plan,
            uvqk_bias=bias if apart else None,
        )
        out_bias = self.out.bias
        return x_TD, linear(gated_TD, self.out.weight, out_bias.detach() if apart else out_bias)


class MtgrRanker(Ranker):
    """The ranker.

    Args:
        dataset: Declares features and tables.
        config: Sizes.
        generator: Source of the embedding tables' initial values; other weights take torch's global one.
    """

    def __init__(self, dataset: Dataset, config: MtgrConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.inputs = config.inputs(dataset, generator)
        self.mask, self.norm = config.mask, config.norm
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.heads = Heads(config.d_model, config.head_hidden)

    def forward(self, batch: JaggedBatch, embeddings: Embeddings | None = None) -> Tensor:
        """Logits of click and conversion (over all impressions), float32 `[2, C]`."""
        tokens = self.inputs(batch, embeddings)
        where = seen(batch.layout(), self.mask, self.norm)
        logits: Tensor = self.heads(candidates_of(self.blocks, tokens, where, recompute=self.recompute))
        return logits


def candidates_of(
    blocks: Iterable[nn.Module], tokens: Mapping[Group, Tensor], where: Layout, *, recompute: bool
) -> Tensor:
    """What blocks make of the candidates, `[C, D]`.

    Args:
        blocks: `Block`s, one or more.
        tokens: By group, as `InputTokens` gives them.
        where: Where the tokens lie, and what they see.
        recompute: As `Ranker`.
    """
    in_groups = torch.cat(
        [tokens[Group.PROFILE].flatten(0, 1), *(tokens[group] for group in list(Group)[1:])]
    )
    x_TD = take_rows(where.source, in_groups)
    plan: Tensor | None = None
    added_TD: Tensor | None = None
    bias: Tensor | None = None
    for block in blocks:
        assert isinstance(block, Block)
        plan = block.plan(x_TD, where) if added_TD is None else plan
        inputs = x_TD, added_TD, bias, where, plan
        if recompute and torch.is_grad_enabled():
            # Nothing here is random: there is no state to restore, which would wait for the device.
            x_TD, added_TD = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            x_TD, added_TD = block(*inputs)
        bias = block.out.bias if defers_bias_gradient(x_TD) else None
    assert added_TD is not None
    # Of the last block only candidates are read.
    x_CD = take_rows(where.candidates, x_TD, added_TD)
    if bias is not None:
        x_CD = x_CD + (bias - bias.detach()).to(x_CD.dtype)  # nothing, but for its gradient
    return x_CD


def seen(where: Layout, mask: str, norm: str) -> Layout:
    """The layout with the mask and the groups of the norm that a config names."""
    if norm == "layer":
        where = dataclasses.replace(where, group=torch.zeros_like(where.group))
    if mask == "dynamic":
        return where
    place_T = torch.arange(where.num_tokens, device=where.group.device)
    row_T = torch.searchsorted(where.offsets[1:], place_T, right=True)
    first_T, end_T = where.offsets[row_T], where.offsets[row_T + 1]
    visible_T = torch.minimum(where.visible_end, (place_T - first_T).int())
    return dataclasses.replace(where, visible_end=visible_T if mask == "causal" else end_T - first_T)
