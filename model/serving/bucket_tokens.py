"""From a buffer of requests to tokens in their order, on memory of a fixed size."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from model.serving import kernels
from model.serving.collate import Bucket, Part, RequestBuffer
from model.serving.columns import SIDES, Feature, Store
from model.serving.prefixes import MAX_PAGES
from model.serving.weights import Shared
from spark_jobs.contract.features import Group


class BucketTokens:
    """Tokens of a part of a bucket.

    Args:
        shared: Of the engine.
        part: Which tokens.
        bucket: How many there is room for.

    Attributes:
        buffer: What requests are written into.
        given: By name, what was written, on the device.
        places: Where each token comes from and what it sees; see `kernels.lay_out`.
        num_tokens: Places T.
    """

    def __init__(self, shared: Shared, part: Part, bucket: Bucket) -> None:
        columns, device = shared.weights.columns, shared.device
        self.shared = shared
        is_cuda = device.type == "cuda"
        max_pages = MAX_PAGES if shared.cache is not None else 0
        self.buffer = RequestBuffer(columns, bucket, part, max_pages=max_pages, pin=is_cuda)
        self.storage = torch.zeros_like(self.buffer.storage, device=device, pin_memory=False)
        self.given = self.buffer.views(self.storage)
        self.num_profile = self.buffer.room[Group.PROFILE] * columns.profile_tokens
        self.num_tokens = self.buffer.num_tokens
        num_candidates = self.buffer.room[Group.CANDIDATE]
        sizes = dict.fromkeys(("source", "group", "visible_end", "own"), self.num_tokens)
        sizes |= dict.fromkeys(("candidate", "candidate_end"), num_candidates)
        self.places = {
            name: torch.zeros(size, dtype=torch.int64 if name == "source" else torch.int32, device=device)
            for name, size in sizes.items()
        }
        self._make_inputs()

    def _make_inputs(self) -> None:
        """The MLPs' inputs, and where each feature goes in them."""
        columns, device, room = self.shared.weights.columns, self.shared.device, self.buffer.room
        tokens = {**room, Group.PROFILE: self.num_profile}
        self.flat = torch.zeros(
            sum(tokens[side] * columns.inputs[side] for side in SIDES), dtype=self.shared.dtype, device=device
        )
        self.inputs: dict[Group, Tensor] = {}
        start: dict[Group, int] = {}
        first = 0
        for side in SIDES:
            size = tokens[side] * columns.inputs[side]
            self.inputs[side] = self.flat[first : first + size].view(tokens[side], columns.inputs[side])
            start[side] = first
            first += size
        features = columns.profile_tokens
        ones = torch.arange(self.num_profile, device=device)
        if self.num_profile:
            self.inputs[Group.PROFILE][ones, columns.biases + ones % features] = 1
        self.pieces = [
            torch.tensor(self._pieces_of(store, start), dtype=torch.int64, device=device).reshape(-1, 5)
            for store in columns.stores
        ]
        picked = [self._picked(store) for store in columns.stores if store.dynamic is not None]
        self.picked = [torch.tensor(one, dtype=torch.int64, device=device).reshape(-1, 3) for one in picked]
        numbers = []
        num_ids = features - columns.num_numbers[Group.PROFILE]
        for side in SIDES:
            for n in range(columns.num_numbers[side]):
                source = self.buffer.first(columns.num_numbers, side) + n * room[side]
                numbers.append(
                    [source, room[side], *self._target(side, start, num_ids + n, columns.numbers[side] + n)]
                )
        self.number_pieces = torch.tensor(numbers, dtype=torch.int64, device=device)
        self.most = max(room.values())

    def _target(self, side: Group, start: dict[Group, int], token: int, column: int) -> tuple[int, int]:
        """First element in the inputs and elements between two requests or tokens of a feature.

        Args:
            side: Of the feature.
            start: Of the sides' inputs.
            token: Which of the profile's tokens the feature is.
            column: The feature's first.
        """
        columns = self.shared.weights.columns
        width = columns.inputs[side]
        if side is Group.PROFILE:
            return start[side] + token * width + column, columns.profile_tokens * width
        return start[side] + column, width

    def _pieces_of(self, store: Store, start: dict[Group, int]) -> list[list[int]]:
        """Pieces of a store's features: from places among all ids, or, if it is dynamic, among its own."""
        pieces, done = [], 0
        for side in SIDES:
            room = self.buffer.room[side]
            for feature in store.sides[side]:
                first = done if store.dynamic is not None else self._first_id(side, feature)
                target = self._target(side, start, feature.place, feature.column)
                pieces.append([first, room, *target, feature.shift])
                done += room
        return pieces

    def _picked(self, store: Store) -> list[list[int]]:
        """Where the ids of a dynamic store's features are, and where they go, end to end."""
        pieces, done = [], 0
        for side in SIDES:
            for feature in store.sides[side]:
                pieces.append([self._first_id(side, feature), self.buffer.room[side], done])
                done += self.buffer.room[side]
        return pieces

    def _first_id(self, side: Group, feature: Feature) -> int:
        features = self.shared.weights.columns.features
        return self.buffer.first(features, side) + feature.place * self.buffer.room[side]

    def compute(self) -> Tensor:
        """Tokens `[T, D]` of what is in the buffer, side by side; `places["source"]` is their order."""
        self.storage.copy_(self.buffer.storage, non_blocking=True)
        weights, buffer = self.shared.weights, self.buffer
        tokens = torch.empty(
            self.num_tokens, self.shared.config.d_model, dtype=self.shared.dtype, device=self.flat.device
        )
        ends = np.cumsum([self.num_profile, buffer.room[Group.STATIC]]).tolist()
        of_profile, of_behaviours, of_candidates = torch.tensor_split(tokens, ends)
        dynamic = iter(self.picked)
        self._side_by_side(
            self._lay_out,
            lambda: kernels.put_numbers(
                self.number_pieces, self.most, weights.constants, self.given["numbers"], self.flat
            ),
            *(
                functools.partial(self._put_fixed, k)
                if store.dynamic is None
                else functools.partial(self._put_dynamic, k, next(dynamic))
                for k, store in enumerate(weights.columns.stores)
            ),
        )
        self._side_by_side(
            functools.partial(self._mlp, Group.STATIC, of_behaviours),
            functools.partial(self._mlp, Group.CANDIDATE, of_candidates),
            lambda: torch.mm(self.inputs[Group.PROFILE], weights.profile, out=of_profile),
        )
        return tokens

    def _side_by_side(self, *steps: Callable[[], object]) -> None:
        """Runs steps that do not need each other, on a GPU each on a stream of its own."""
        if not self.shared.streams:
            for step in steps:
                step()
            return
        current = torch.cuda.current_stream(self.shared.device)
        streams = self.shared.streams[: len(steps) - 1]
        for step, stream in zip(steps[1:], streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                step()
        steps[0]()
        for stream in streams:
            current.wait_stream(stream)

    def _lay_out(self) -> None:
        given = self.given
        kernels.lay_out(
            given["facts"],
            (given["visible_b"], given["visible_c"]),
            self.places,
            profile_tokens=self.buffer.profile_tokens,
            num_behaviours=self.buffer.room[Group.STATIC],
        )

    def _mlp(self, side: Group, out: Tensor) -> None:
        if len(out):
            bias_in, weight_in, bias_out, weight_out = self.shared.weights.mlps[side]
            hidden = nn.functional.silu(torch.addmm(bias_in, self.inputs[side], weight_in), inplace=True)
            torch.addmm(bias_out, hidden, weight_out, out=out)
            shared = self.shared.weights.shared[side]
            if shared is not None:
                out.addmm_(self.inputs[side], shared)

    def _put_fixed(self, k: int) -> None:
        fixed = self.shared.weights.fixed[k]
        assert fixed is not None
        kernels.put_vectors(self.pieces[k], self.most, self.given["ids"], fixed, self.flat)

    def _put_dynamic(self, k: int, picked: Tensor) -> None:
        table, sides = self.shared.weights.tables[k], self.shared.weights.columns.stores[k].sides
        assert table is not None
        sizes = [self.buffer.room[side] for side in SIDES for _ in sides[side]]
        ends, tables = np.cumsum(sizes).tolist(), [feature.table for side in SIDES for feature in sides[side]]
        ids = torch.empty(sum(sizes), dtype=torch.int64, device=self.flat.device)
        if not len(ids):
            return
        kernels.pick(picked, self.most, self.given["ids"], ids)
        vectors = table.vectors(table.find(ids, ends, tables), ids, ends, tables)
        kernels.put_vectors(self.pieces[k], self.most, None, vectors, self.flat)
