"""Rows spread over ranks by the hashes of their ids, and what goes between the ranks.

An id that stands many times in a rank's batch is asked of its owner once, and the gradients of its positions
are added before they go back; the owner adds what the ranks send for one row and writes it once. Keys are
counted (admission, `lfu`) once a rank and step, where one process counts every position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.embeddings.hash_table import HashTable
from model.embeddings.mixing import owner_of
from model.embeddings.table_state import BY_KEY, WAITING


@dataclass(frozen=True, kw_only=True)
class Route:
    """How the distinct ids of a batch go to their owners.

    Attributes:
        inverse: `[n]`, the place of each position's id among those that are sent.
        sent: Distinct ids for each rank.
        received: Ids that come from each rank.
        ids: Those that came, rank after rank, table after table.
        ends: Ends of their slices.
        tables: Of the slices.
    """

    inverse: Tensor
    sent: list[int]
    received: list[int]
    ids: Tensor
    ends: list[int]
    tables: list[int]

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that `stream` uses what another stream has sent."""
        self.inverse.record_stream(stream)
        self.ids.record_stream(stream)


class Exchange:
    """The ranks that share tables.

    Args:
        group: Of all of them.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.num_ranks = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def lookup(self, table: HashTable, route: Route, *, learns: bool) -> Tensor:
        """Vectors of the ids that were sent by a route; every rank must call it."""
        anchor = torch.empty(0, device=route.ids.device, requires_grad=learns)
        out: Tensor = _Shared.apply(anchor, self, table, route, learns)  # type: ignore[no-untyped-call]
        return out

    def is_mine(self, ids: Tensor, tables: Tensor) -> Tensor:
        """Which keys this rank keeps."""
        mine = torch.empty(len(ids), dtype=torch.bool, device=ids.device)
        for table in torch.unique(tables).tolist():
            chosen = tables == table
            mine[chosen] = owner_of(ids[chosen], table, self.num_ranks) == self.rank
        return mine

    def sources(self, num_ranks: int) -> list[int]:
        """Of `num_ranks` ranks that had the tables, those that may have had keys which this rank keeps.

        A key's owner is a hash modulo the number of ranks: two remainders of one number agree modulo the
        greatest common divisor of what it was divided by.
        """
        common = math.gcd(num_ranks, self.num_ranks)
        return list(range(self.rank % common, num_ranks, common))

    def own(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a state."""
        part = dict(state)
        for names in (BY_KEY, WAITING):
            mine = self.is_mine(state[names[0]], state[names[1]])
            part |= {name: state[name][mine] for name in names if name in state}
        return part

    def send(self, values: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Values for each rank out, those of each rank in."""
        out = values.new_empty(sum(received), *values.shape[1:])
        dist.all_to_all_single(out, values.contiguous(), received, sent, group=self.group)
        return out

    def route(self, ids: Tensor, ends: Sequence[int], tables: Sequence[int]) -> Route:
        """Sends this rank's ids to their owners, and waits for how many come; every rank must call it."""
        kinds = sorted(set(tables))
        inverse = torch.empty(len(ids), dtype=torch.int64, device=ids.device)
        distinct, owners, numbers = [], [], []
        begins = [0, *ends[:-1]]
        num_sent = 0
        for number, table in enumerate(kinds):
            places = torch.cat(
                [torch.arange(begins[k], ends[k]) for k, kind in enumerate(tables) if kind == table]
            ).to(ids.device)
            own, where = torch.unique(ids[places], return_inverse=True)
            inverse[places] = where + num_sent
            num_sent += len(own)
            distinct.append(own)
            owners.append(owner_of(own, table, self.num_ranks))
            numbers.append(torch.full_like(own, number))
        keys, target = torch.cat(distinct), torch.cat(owners) * len(kinds) + torch.cat(numbers)
        order = target.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=ids.device)
        counts = torch.bincount(target, minlength=self.num_ranks * len(kinds))
        theirs = torch.empty_like(counts)
        dist.all_to_all_single(theirs, counts, group=self.group)
        both = torch.stack([counts, theirs]).view(2, self.num_ranks, -1).cpu()
        sent, received = both.sum(2).tolist()
        return Route(
            inverse=place[inverse],
            sent=sent,
            received=received,
            ids=self.send(keys[order], sent, received),
            ends=both[1].flatten().cumsum(0).tolist(),
            tables=kinds * self.num_ranks,
        )


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, anchor: Tensor, exchange: Exchange, table: HashTable, route: Route, learns: bool
    ) -> Tensor:
        slices = (route.ids, route.ends, route.tables)
        rows = table.insert(*slices) if learns else table.find(*slices)
        ctx.exchange, ctx.table, ctx.route, ctx.rows = exchange, table, route, rows
        vectors = exchange.send(table.vectors(rows, *slices), route.received, route.sent)
        return vectors[route.inverse]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        route, exchange = ctx.route, ctx.exchange
        summed = grad.new_zeros(sum(route.sent), grad.shape[1]).index_add_(0, route.inverse, grad)
        # As in TorchRec's row-wise exchange, the gradient is the mean over the ranks.
        ctx.table.update(ctx.rows, exchange.send(summed, route.sent, route.received) / exchange.num_ranks)
        return (None,) * 5
