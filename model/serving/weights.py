"""A model's weights as the scoring engine reads them: rounded once, laid out for its products."""
# ruff: noqa: N803 (names carry their shape: W columns, D width)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hstu_ops import scoring
from torch import Tensor, nn

from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.embeddings.hash_table import HashTable
from model.embeddings.rules import RowOptimizer
from model.rankers.inputs import InputTokens
from model.rankers.mtgr import Block, MtgrConfig, MtgrRanker
from model.serving.columns import SIDES, Columns
from model.serving.prefixes import PrefixCache
from spark_jobs.contract.features import Group


class Weights:
    """What the passes read.

    Args:
        ranker: Whose.
        device: Where to.
        dtype: Of dense weights; fixed tables and rows of dynamic ones are float32.
    """

    def __init__(self, ranker: MtgrRanker, device: torch.device, dtype: torch.dtype) -> None:
        inputs = ranker.inputs
        self.columns = Columns.of(inputs)
        self.tables = [
            None if store.dynamic is None else _hash_table(store.dynamic, device)
            for store in self.columns.stores
        ]
        self.fixed = [None if s.fixed is None else s.fixed.to(device) for s in self.columns.stores]
        scaler = inputs.scaler
        of_number = torch.stack([scaler.mean_F, scaler.std_F, scaler.fitted_F], dim=1).float()
        self.constants = torch.cat([of_number[scaler.columns[side]] for side in SIDES]).contiguous()
        self.profile = _profile_weight(ranker, self.columns).to(device, dtype)
        self.mlps = {
            Group.STATIC: _mlp(inputs.behaviour, self.columns.inputs[Group.STATIC], dtype),
            Group.CANDIDATE: _mlp(
                inputs.candidate, self.columns.inputs[Group.CANDIDATE], dtype, inputs.kept_W
            ),
        }
        self.shared = {side: _shared(inputs, side, self.columns.inputs[side], dtype) for side in self.mlps}
        self.blocks = [BlockWeights(block, dtype) for block in ranker.blocks]  # type: ignore[arg-type]
        head_dim = ranker.blocks[0].head_dim
        assert isinstance(head_dim, int)
        is_folded = scoring.missing(device.type, dtype, head_dim) is None
        self.folded = [FoldedBlock(block) for block in self.blocks] if is_folded else []
        heads = ranker.heads
        self.head_norm = heads.norm
        first, last = ([tower[at] for tower in heads.towers] for at in (0, 2))  # type: ignore[index]
        self.head_in = (_cat(first, "bias").to(dtype), _cat(first, "weight").to(dtype).t())
        self.head_out = (_cat(last, "weight").float(), _cat(last, "bias").float())


class BlockWeights:
    """Biases and transposed weights of a block's products, and the block itself, for its norms."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.block = block
        self.uvqk = (block.uvqk.bias.detach().to(dtype), block.uvqk.weight.detach().to(dtype).t())
        self.out = (block.out.bias.detach().to(dtype), block.out.weight.detach().to(dtype).t())


class FoldedBlock:
    """A block whose norms are folded into its products, for `hstu_ops.scoring`."""

    def __init__(self, weights: BlockWeights) -> None:
        norm_in, norm_out = weights.block.norm_in, weights.block.norm_out
        self.scale_in = norm_in.weight_GD.detach().float().contiguous()
        self.scale_out = norm_out.weight_GD.detach().float().contiguous()
        self.uvqk, self.out = (
            scoring.fold(weight.t(), bias, norm.weight_GD.detach(), norm.bias_GD.detach(), norm.eps)
            for (bias, weight), norm in ((weights.uvqk, norm_in), (weights.out, norm_out))
        )


def _cat(layers: Sequence[nn.Module], name: str) -> Tensor:
    return torch.cat([getattr(layer, name).detach() for layer in layers])


def _mlp(
    layers: nn.Sequential, width: int, dtype: torch.dtype, kept_W: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Biases and transposed weights of both layers, the first for an input of `width` columns."""
    first, last = layers[0], layers[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    read = first.weight.detach() if kept_W is None else first.weight.detach() * kept_W
    padded = nn.functional.pad(read, (0, width - first.in_features))
    weights = (first.bias, padded.t(), last.bias, last.weight.t())
    bias_in, weight_in, bias_out, weight_out = (tensor.detach().to(dtype) for tensor in weights)
    return bias_in, weight_in, bias_out, weight_out


def _shared(inputs: InputTokens, side: Group, width: int, dtype: torch.dtype) -> Tensor | None:
    """`[width, D]`, the projection that behaviours and candidates share, of all input columns of a side."""
    if inputs.shared is None:
        return None
    columns = [c for run in inputs.item_columns[side] for c in range(run.start, run.stop)]
    weight = inputs.shared.weight.detach()
    if side is Group.CANDIDATE and inputs.kept_W is not None:
        weight = weight * inputs.kept_W[columns]
    wide = weight.new_zeros(width, len(weight))
    wide[columns] = weight.t()
    return wide.to(dtype)


def _profile_weight(ranker: MtgrRanker, columns: Columns) -> Tensor:
    """`[columns, D]`, by which one product makes all profile tokens."""
    profile = ranker.inputs.profile
    weight = torch.zeros(columns.inputs[Group.PROFILE], profile.weight_FD.shape[1])
    first = 0
    biases = []
    for projection in profile.projections:
        assert isinstance(projection, nn.Linear)
        weight[first : first + projection.in_features] = projection.weight.detach().t()
        first += projection.in_features
        biases.append(projection.bias.detach().cpu())
    weight[first : first + len(profile.weight_FD)] = profile.weight_FD.detach()
    weight[columns.biases : columns.biases + columns.profile_tokens] = torch.stack(
        [*biases, *profile.bias_FD.detach().cpu()]
    )
    return weight


def _hash_table(dynamic: DynamicEmbeddingCollection, device: torch.device) -> HashTable:
    """A collection's rows as a hash table that nothing is added to."""
    held = dynamic.published()
    table = HashTable(
        dynamic.width, optimizer=RowOptimizer(name="sgd", lr=0.0), seed=dynamic.seed, device=device
    )
    tables = torch.arange(len(dynamic.configs)).repeat_interleave(held["starts"].cpu().diff())
    table.load_vectors(held["ids"], tables.to(held["ids"].device), held["vectors"])
    return table


@dataclass(kw_only=True)
class Shared:
    """What all passes of an engine share.

    Attributes:
        weights: Of the model.
        config: Of the model.
        dtype: Of tokens and dense weights.
        device: Where all lies.
        cache: Of kept keys and values; None: none are kept.
        num_processors: What keys are cut for.
        streams: For steps that do not need each other; none on a CPU.
    """

    weights: Weights
    config: MtgrConfig
    dtype: torch.dtype
    device: torch.device
    cache: PrefixCache | None
    num_processors: int
    streams: list[torch.cuda.Stream]
