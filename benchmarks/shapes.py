"""The workloads that benchmarks and proofs share: shape P of MTGR, uniform GPU shapes, CPU training rows.

A workload is a jagged batch of rows (profile and history tokens, then real-time tokens, then candidates) with
the mask that MTGR draws over it. `build(WORKLOADS["P"])` gives its `offsets` and `visible_end`; `uvqk` gives
q, k, v as slices of one tensor, as the block has them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One benchmark line; a row has so many tokens of each kind, in `[low, high)`, drawn with `seed`."""

    name: str
    num_rows: int
    static: tuple[int, int]
    realtime: tuple[int, int]
    candidates: tuple[int, int]
    num_heads: int
    head_dim: int
    seed: int = 1


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            name="P",
            num_rows=96,
            static=(200, 1000),
            realtime=(10, 100),
            candidates=(50, 200),
            num_heads=3,
            head_dim=256,
        ),
        Workload(
            name="P-6x128",
            num_rows=96,
            static=(200, 1000),
            realtime=(10, 100),
            candidates=(50, 200),
            num_heads=6,
            head_dim=128,
        ),
        Workload(
            name="P-12x64",
            num_rows=96,
            static=(200, 1000),
            realtime=(10, 100),
            candidates=(50, 200),
            num_heads=12,
            head_dim=64,
        ),
        Workload(
            name="64x512",
            num_rows=64,
            static=(384, 384),
            realtime=(0, 0),
            candidates=(128, 128),
            num_heads=3,
            head_dim=256,
        ),
        Workload(
            name="32x2048",
            num_rows=32,
            static=(1920, 1920),
            realtime=(0, 0),
            candidates=(128, 128),
            num_heads=4,
            head_dim=256,
        ),
        Workload(
            name="32x4096",
            num_rows=32,
            static=(3968, 3968),
            realtime=(0, 0),
            candidates=(128, 128),
            num_heads=4,
            head_dim=128,
        ),
        Workload(
            name="cpu-2x32",
            num_rows=64,
            static=(60, 440),
            realtime=(0, 60),
            candidates=(40, 100),
            num_heads=2,
            head_dim=32,
        ),
        Workload(
            name="cpu-3x256",
            num_rows=64,
            static=(60, 440),
            realtime=(0, 60),
            candidates=(40, 100),
            num_heads=3,
            head_dim=256,
        ),
    )
}
# P with other head dims: attention alone, since norm and products are those of P.
ATTENTION_WORKLOADS = ("P-6x128", "P-12x64")
GPU_WORKLOADS = ("P", "64x512", "32x2048", "32x4096", *ATTENTION_WORKLOADS)
CPU_WORKLOADS = ("cpu-2x32", "cpu-3x256")


@dataclass(frozen=True, kw_only=True)
class Jagged:
    """A batch's structure: int32 `offsets` [B + 1], `visible_end` and `group` [T] (1 S, 2 R, 3 candidate)."""

    offsets: Tensor
    visible_end: Tensor
    group: Tensor

    @property
    def num_tokens(self) -> int:
        """T, the tokens of all rows."""
        return self.visible_end.numel()

    @property
    def visible_pairs(self) -> int:
        """Pairs (i, j) that the mask allows, of one head: what a FLOP count may count. Reads the tensors."""
        end = self.visible_end.long()
        start = torch.repeat_interleave(self.offsets[:-1].long(), self.offsets.diff().long())
        position = torch.arange(end.numel(), device=end.device) - start
        return int((end + (position >= end)).sum())

    @classmethod
    def random(
        cls, *, static: list[int], realtime: list[int], candidates: list[int], seed: int = 7
    ) -> "Jagged":
        """Draws rows of these token counts on the CPU; see `jagged`."""
        return jagged(static, realtime, candidates, torch.Generator().manual_seed(seed))

    def to(self, device: torch.device | str) -> "Jagged":
        """Copies the structure to `device`."""
        return Jagged(
            offsets=self.offsets.to(device),
            visible_end=self.visible_end.to(device),
            group=self.group.to(device),
        )


def jagged(
    static: list[int], realtime: list[int], candidates: list[int], generator: torch.Generator
) -> Jagged:
    """Lays rows of these token counts end to end; event and candidate times are drawn, uniform."""
    lengths, ends, groups = [], [torch.zeros(0, dtype=torch.int32)], [torch.zeros(0, dtype=torch.int32)]
    for n_static, n_realtime, n_candidates in zip(static, realtime, candidates, strict=True):
        event_time = torch.rand(n_realtime, generator=generator).sort().values
        shown_time = torch.rand(n_candidates, generator=generator)
        time = torch.cat([event_time, shown_time])
        earlier = torch.searchsorted(event_time, time, right=False)  # equal times are not visible
        ends += [torch.full((n_static,), n_static), n_static + earlier]
        groups += [torch.full((n,), g) for g, n in ((1, n_static), (2, n_realtime), (3, n_candidates))]
        lengths.append(n_static + n_realtime + n_candidates)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Jagged(offsets=offsets.int(), visible_end=torch.cat(ends).int(), group=torch.cat(groups).int())


def build(workload: Workload) -> Jagged:
    """Draws the rows of a workload on the CPU: first the counts, in the order S, R, candidates."""
    generator = torch.Generator().manual_seed(workload.seed)

    def draw(bounds: tuple[int, int]) -> list[int]:
        low, high = bounds
        if low == high:
            return [low] * workload.num_rows
        return torch.randint(low, high, (workload.num_rows,), generator=generator).tolist()

    static, realtime, candidates = draw(workload.static), draw(workload.realtime), draw(workload.candidates)
    return jagged(static, realtime, candidates, generator)


def uvqk(
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    seed: int = 0,
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws normal u, v, q, k as slices of one [T, 4, N, D] tensor; u is [T, N * D], the others [T, N, D]."""
    generator = torch.Generator(device=device).manual_seed(seed)
    product = torch.randn(
        num_tokens, 4, num_heads, head_dim, dtype=torch.float32, device=device, generator=generator
    ).to(dtype)
    product.requires_grad_(requires_grad)
    u, v, q, k = product.unbind(1)
    return u.flatten(1), v, q, k
