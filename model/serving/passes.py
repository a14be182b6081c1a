"""A part of a bucket's requests from their buffer to probabilities: one CUDA graph."""
# ruff: noqa: N803, N806 (names carry their shape: T tokens, C candidates, N heads, D width)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hstu_ops
import numpy as np
import numpy.typing as npt
import torch
from hstu_ops import scoring
from hstu_ops.triton_ops.inference import Queries, gate_norm, split_attention, tile_of
from torch import Tensor

from model.data.batch import JaggedBatch
from model.data.layout import GROUPS
from model.rankers.mtgr import Block
from model.serving import kernels
from model.serving.bucket_tokens import BucketTokens
from model.serving.collate import Bucket, Part, Prefix
from model.serving.weights import Shared
from model.training.captured import no_collection
from spark_jobs.contract.features import Group

_FOLDED_MOST = 1536  # tokens: of more, kernels that are each faster where they are large
_MOST_PARTS = 16
_CUTLASS_TILE = 128  # queries of a program
_CUTLASS_FROM = 0.5  # programs a processor


class Pass:
    """A part of the tokens of a bucket's requests on fixed memory.

    Args:
        shared: Of the engine.
        part: Which tokens.
        bucket: How many there is room for.

    Attributes:
        num_tokens: Places for tokens, T.
    """

    def __init__(self, shared: Shared, part: Part, bucket: Bucket) -> None:
        self.shared, self.part, self.bucket = shared, part, bucket
        self.tokens = BucketTokens(shared, part, bucket)
        self.num_tokens = self.tokens.num_tokens
        self._is_cuda = shared.device.type == "cuda"
        num_candidates = self.tokens.buffer.room[Group.CANDIDATE]
        self.candidate_group = torch.full(
            (num_candidates,), len(GROUPS) - 1, dtype=torch.int32, device=shared.device
        )
        self.out = torch.zeros(2, num_candidates, pin_memory=self._is_cuda)
        self._probabilities = self.out.numpy()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._plan: Tensor | None = None

    def capture(self, pool: Any) -> None:
        """Captures the pass as a graph that shares its working memory with others."""
        for _ in range(2):  # what is compiled or allocated at a first run must be there
            self._compute()
        torch.cuda.synchronize(self.shared.device)
        graph = torch.cuda.CUDAGraph()
        with (
            no_collection(),
            torch.inference_mode(),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self._compute()
        self._graph = graph

    def run(self, batch: JaggedBatch, prefixes: Sequence[Prefix] | None) -> npt.NDArray[np.float32]:
        """Probabilities `[2, C]` of a batch's candidates."""
        self.tokens.buffer.fill(batch, prefixes)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._compute()
        if self._is_cuda:
            torch.cuda.current_stream(self.shared.device).synchronize()
        return self._probabilities[:, : batch.num_candidates].copy()

    @torch.inference_mode()
    def _compute(self) -> None:
        tokens = self.tokens.compute()
        is_folded = self.shared.weights.folded and self.num_tokens <= _FOLDED_MOST
        scores = self._folded_blocks(tokens) if is_folded else self._blocks(tokens)
        if scores is not None:
            self.out.copy_(scores, non_blocking=True)

    def _folded_blocks(self, tokens: Tensor) -> Tensor | None:
        """As `_blocks`, by three kernels a block."""
        shared, given, places = self.shared, self.tokens.given, self.tokens.places
        blocks, group = shared.weights.folded, places["group"]
        seen = self._seen()
        x_TD, normed = kernels.start(tokens, places["source"], group, blocks[0].scale_in)
        for number, folded in enumerate(blocks):
            block = shared.weights.blocks[number].block
            uvqk_T4ND = scoring.normed_product(normed, group, folded.uvqk).view(
                -1, 4, block.num_heads, block.head_dim
            )
            cache = None if shared.cache is None else shared.cache.memory[:, number]
            if self.part is Part.PREFIX:
                assert cache is not None
                _, v, _, k = uvqk_T4ND.unbind(1)
                kernels.keep_keys(k, v, cache, given["facts"], given["pages"])
            if number < len(blocks) - 1:
                gated = scoring.gated_attention(
                    uvqk_T4ND, seen, folded.scale_out, cache if self.part is Part.REST else None,
                    block.alpha, block.inv_n,
                )  # fmt: skip
                normed = scoring.add_product(gated, group, folded.out, x_TD, blocks[number + 1].scale_in)
        return self._scores(x_TD, uvqk_T4ND, cache)

    def _seen(self) -> scoring.Seen:
        """Who attends to what; places that are left over are a row, too, so that they hold numbers."""
        given, places, num_rows = self.tokens.given, self.tokens.places, self.bucket.rows + 1
        is_rest = self.part is Part.REST
        offsets, cached = given["facts"][kernels.OFFSET], given["facts"][kernels.CACHED]
        num_heads, num_processors = self.shared.config.num_heads, self.shared.num_processors
        tile, parts = scoring.split_for(self.num_tokens, num_rows - 1, num_heads, num_processors)
        return scoring.Seen(
            tiles=scoring.query_tiles(offsets, places["visible_end"], cached if is_rest else None, tile),
            visible_end=places["visible_end"],
            group=places["group"],
            pages=given["pages"] if is_rest else None,
            parts=parts,
        )

    def _blocks(self, tokens: Tensor) -> Tensor | None:
        """Probabilities `[2, C]` of the candidates; None if there are none."""
        shared, config, places = self.shared, self.shared.config, self.tokens.places
        x_TD = tokens.index_select(0, places["source"])
        added_TD: Tensor | None = None
        last = len(shared.weights.blocks) - 1
        self._plan = self._make_plan()
        for number, weights in enumerate(shared.weights.blocks):
            block = weights.block
            x_TD, normed_TD = block.norm_in(x_TD, added_TD, None, places["group"])
            uvqk_T4ND = torch.addmm(weights.uvqk[0], normed_TD, weights.uvqk[1]).view(
                -1, 4, config.num_heads, config.head_dim
            )
            cache = None if shared.cache is None else shared.cache.memory[:, number]
            if self.part is Part.PREFIX:
                assert cache is not None
                _, v, _, k = uvqk_T4ND.unbind(1)
                given = self.tokens.given
                kernels.keep_keys(k, v, cache, given["facts"], given["pages"])
            if number < last:
                gated_TD = self._attention(uvqk_T4ND, uvqk_T4ND, block, cache, of_candidates=False)
                added_TD = torch.addmm(weights.out[0], gated_TD, weights.out[1])
        return self._scores(x_TD, uvqk_T4ND, cache)

    def _scores(self, x_TD: Tensor, uvqk_T4ND: Tensor, cache: Tensor | None) -> Tensor | None:
        """Probabilities `[2, C]` of what the last block got; None if there are no candidates."""
        if self.part is Part.PREFIX:
            return None
        weights, of_candidates = self.shared.weights.blocks[-1], self.tokens.places["candidate"]
        block = weights.block
        gated_CD = self._attention(
            uvqk_T4ND.index_select(0, of_candidates), uvqk_T4ND, block, cache, of_candidates=True
        )
        added_CD = torch.addmm(weights.out[0], gated_CD, weights.out[1])
        return self._heads(x_TD, added_CD)

    def _attention(
        self, of_queries: Tensor, of_keys: Tensor, block: Block, cache: Tensor | None, *, of_candidates: bool
    ) -> Tensor:
        """What stands between the products of a block, for all tokens or for candidates only."""
        given, places, num_rows = self.tokens.given, self.tokens.places, self.bucket.rows
        facts = given["facts"]
        group = self.candidate_group if of_candidates else places["group"]
        norm = block.norm_out
        is_rest = self.part is Part.REST
        if not of_candidates and not is_rest and self._takes_cutlass():
            y: Tensor = torch.ops.hstu_ops.gated_attention(
                of_keys, facts[0], places["visible_end"], group, norm.weight_GD, norm.bias_GD,
                block.alpha, block.inv_n, norm.eps, True, self._plan, None,
            )[0]  # fmt: skip
            return y
        kernel_queries = Queries(
            offsets=facts[kernels.FIRST_CANDIDATE if of_candidates else kernels.OFFSET, : num_rows + 1],
            key_offsets=facts[kernels.OFFSET, : num_rows + 1],
            visible_end=places["candidate_end"] if of_candidates else places["visible_end"],
            cached=facts[kernels.CACHED] if is_rest else None,
            pages=given["pages"] if is_rest else None,
            most=self._num_queries(of_candidates),
        )
        _, v, _, k = of_keys.unbind(1)
        parts = split_attention(
            of_queries[:, 2], k, v, kernel_queries, block.alpha, self._num_parts(of_candidates),
            cache if is_rest else None,
        )  # fmt: skip
        own = places["candidate"] if of_candidates else places["own"]
        affine = norm.weight_GD, norm.bias_GD
        return gate_norm(parts, of_queries, of_keys, own, group, *affine, block.alpha, block.inv_n, norm.eps)

    def _make_plan(self) -> Tensor | None:
        """What the CUTLASS kernels know of the mask, once for all blocks."""
        if self.part is Part.REST or not self._takes_cutlass():
            return None
        plan: Tensor = torch.ops.hstu_ops.mtgr_plan(
            self.tokens.given["facts"][0], self.tokens.places["visible_end"]
        )
        return plan

    def _num_queries(self, of_candidates: bool) -> int:
        """Most queries of a row."""
        return self.tokens.buffer.room[Group.CANDIDATE] if of_candidates else self.num_tokens

    def _takes_cutlass(self) -> bool:
        """Whether whole rows fill the chip, so that the faster kernel, which does not cut keys, is taken."""
        shared = self.shared
        num_heads, head_dim = shared.config.num_heads, shared.config.head_dim
        is_taken = hstu_ops.backends.missing("cutlass", shared.device.type, shared.dtype, head_dim) is None
        programs = (self.num_tokens // _CUTLASS_TILE + self.bucket.rows) * num_heads
        return is_taken and programs >= _CUTLASS_FROM * shared.num_processors

    def _num_parts(self, of_candidates: bool) -> int:
        """Parts of the keys by which tiles and heads are about as many programs as processors."""
        shared, most = self.shared, self._num_queries(of_candidates)
        tile = tile_of(shared.dtype, shared.config.head_dim, most)["QUERIES"]
        programs = (most // tile + self.bucket.rows) * shared.config.num_heads
        return min(max(round(shared.num_processors / programs), 1), _MOST_PARTS)

    def _heads(self, x_TD: Tensor, added_CD: Tensor) -> Tensor:
        """Probabilities, float32 `[2, C]`, of what the last block got and what it adds to its candidates."""
        weights = self.shared.weights
        norm = weights.head_norm
        z_CD = kernels.head_norm(
            x_TD, added_CD, self.tokens.places["candidate"], norm.weight, norm.bias, norm.eps
        )
        bias, weight = weights.head_in
        hidden = torch.addmm(bias, z_CD, weight)
        return kernels.probabilities(hidden.view(len(z_CD), 2, -1), *weights.head_out)
