"""MTGR with a head of crossed features, beyond the paper: what MTGR's blocks read is one of DCN's fields.

In MTGR a candidate's numbers meet each other in the MLP that makes its token, and the user in the gate of
each block; the heads read the last block's output alone. Here the blocks are what target attention is to a
DLRM (`dlrm.py`): the heads read crosses (`dcn.py`) of what the candidate's token became, the user, and each
of the candidate's features. `dcn` differs from it by that one field.
"""
# ruff: noqa: N806 (names carry their shape: C candidates, D width)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.data.batch import JaggedBatch
from model.data.layout import Layout
from model.rankers.dcn import DcnConfig, DcnRanker
from model.rankers.mtgr import Block, MtgrConfig, candidates_of, seen
from spark_jobs.contract.features import Dataset, Group


@dataclass(frozen=True, kw_only=True)
class MtgrDcnConfig(MtgrConfig, DcnConfig):
    """Sizes of both."""

    architecture: str = field(init=False, default="mtgr_dcn")

    def build(self, dataset: Dataset, generator: torch.Generator) -> MtgrDcnRanker:
        """The ranker; see `RankerConfig.build`."""
        return MtgrDcnRanker(dataset, self, generator)


class MtgrDcnRanker(DcnRanker):
    """The ranker; arguments as `MtgrRanker`."""

    def __init__(self, dataset: Dataset, config: MtgrDcnConfig, generator: torch.Generator) -> None:
        super().__init__(dataset, config, generator)
        self.mask, self.norm = config.mask, config.norm
        del self.attention  # of which the blocks take the place
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.read_norm = nn.LayerNorm(config.d_model)

    def attend(self, tokens: Mapping[Group, Tensor], batch: JaggedBatch, where: Layout) -> Tensor:
        """See `DlrmRanker`."""
        where = seen(where, self.mask, self.norm)
        read_CD: Tensor = self.read_norm(candidates_of(self.blocks, tokens, where, recompute=self.recompute))
        return read_CD
