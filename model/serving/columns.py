"""Where each feature of a model's tokens comes from and goes to: made once, for any number of requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.embeddings.dynamic import DynamicEmbeddingCollection
from model.embeddings.tables import FeatureEmbeddings
from model.rankers.inputs import InputTokens
from spark_jobs.contract.features import Group, Kind

# Static and real-time behaviours go through one MLP and lie in one range of places.
SIDES = (Group.PROFILE, Group.STATIC, Group.CANDIDATE)
_ALIGNED = 8  # 16-bit values in 16 bytes: a GPU's products over other widths take twice the time


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A feature of one side that is looked up in the tables of one store.

    Attributes:
        place: Its row in `JaggedBatch.ids` of the side's group.
        column: Its first column in the input of the side's MLP.
        shift: Where its table starts in the store, if rows are fixed.
        table: The table's number, if the store is dynamic.
    """

    place: int
    column: int
    shift: int = 0
    table: int = 0


@dataclass(frozen=True, kw_only=True)
class Store:
    """Tables of one width, end to end: fixed rows, or a dynamic collection.

    Attributes:
        width: Of a vector.
        sides: Features by side, for each of `SIDES`.
        fixed: float32 `[rows, width]` of all tables; None if the store is dynamic.
        dynamic: The collection; None if rows are fixed.
    """

    width: int
    sides: dict[Group, tuple[Feature, ...]]
    fixed: Tensor | None = None
    dynamic: DynamicEmbeddingCollection | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Input columns of the three sides: of each feature's vector, then of the numbers.

    A profile token has columns of its own, all others zero, and one that is 1 for its bias, so that one
    product makes all profile tokens.

    Attributes:
        stores: All tables.
        features: By side, id features of its group.
        hashed: By side, places of the features that are looked up by their ids' hashes, and the rows of their
            tables.
        numbers: By side, the first column of the numbers.
        num_numbers: By side, how many there are.
        inputs: By side, columns of the MLP's input; of the profile, of each of its tokens.
        profile_tokens: Features of a profile.
        biases: First of the profile's columns that are 1.
    """

    stores: tuple[Store, ...]
    features: dict[Group, int]
    hashed: dict[Group, tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]]
    numbers: dict[Group, int]
    num_numbers: dict[Group, int]
    inputs: dict[Group, int]
    profile_tokens: int
    biases: int

    @staticmethod
    def of(inputs: InputTokens) -> Columns:
        """The columns of a ranker's inputs."""
        embeddings, scaler = inputs.embeddings, inputs.scaler
        numbers, widths = {}, {}
        starts: dict[Group, list[int]] = {}
        for side in SIDES:
            of_features = embeddings.widths(side)
            starts[side] = [int(first) for first in np.cumsum([0, *of_features])]
            numbers[side] = starts[side][-1]
            widths[side] = numbers[side] + len(scaler.columns[side])
        num_tokens = len(embeddings.features[Group.PROFILE]) + len(scaler.columns[Group.PROFILE])
        biases = widths[Group.PROFILE]
        widths[Group.PROFILE] += num_tokens
        return Columns(
            stores=tuple(_stores(embeddings, starts)),
            features={side: len(embeddings.features[side]) for side in SIDES},
            hashed={side: _hashed(embeddings, side) for side in SIDES},
            numbers=numbers,
            num_numbers={side: len(scaler.columns[side]) for side in SIDES},
            inputs={side: -(-width // _ALIGNED) * _ALIGNED for side, width in widths.items()},
            profile_tokens=num_tokens,
            biases=biases,
        )


def _stores(embeddings: FeatureEmbeddings, starts: dict[Group, list[int]]) -> list[Store]:
    stores = []
    for tables in embeddings.tables.values():
        weights = {name: table.weight for name, table in tables.embeddings.items()}  # type: ignore[operator,union-attr]
        firsts = np.cumsum([0, *(len(weight) for weight in weights.values())])
        first_row = dict(zip(weights, firsts.tolist(), strict=False))
        stores.append(
            Store(
                width=int(next(iter(weights.values())).shape[1]),
                sides={side: _features(embeddings, side, starts[side], first_row, None) for side in SIDES},
                fixed=torch.cat([weight.detach().float() for weight in weights.values()]),
            )
        )
    for dynamic in embeddings.dynamic.values():
        assert isinstance(dynamic, DynamicEmbeddingCollection)
        stores.append(
            Store(
                width=dynamic.width,
                sides={side: _features(embeddings, side, starts[side], None, dynamic) for side in SIDES},
                dynamic=dynamic,
            )
        )
    return stores


def _features(
    embeddings: FeatureEmbeddings,
    side: Group,
    starts: list[int],
    first_row: dict[str, int] | None,
    dynamic: DynamicEmbeddingCollection | None,
) -> tuple[Feature, ...]:
    """Features of a side that lie in the fixed tables of `first_row`, or in `dynamic`."""
    chosen = []
    for place, feature in enumerate(embeddings.features[side]):
        is_dynamic = feature.kind is Kind.ID and bool(embeddings.dynamic)
        if dynamic is not None and is_dynamic:
            table = dynamic.numbers.get(f"{side}_{feature.name}")
            if table is not None:
                chosen.append(Feature(place=place, column=starts[place], table=table))
        elif first_row is not None and not is_dynamic and feature.table in first_row:
            chosen.append(Feature(place=place, column=starts[place], shift=first_row[feature.table]))
    return tuple(chosen)


def _hashed(
    embeddings: FeatureEmbeddings, side: Group
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    features = [] if embeddings.dynamic else embeddings.features[side]
    places = [place for place, feature in enumerate(features) if feature.kind is Kind.ID]
    rows = [[embeddings.sizes[features[place].table].rows] for place in places]
    return np.array(places, np.int64), np.array(rows, np.uint64).reshape(-1, 1)
