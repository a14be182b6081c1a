"""The other sides of `benchmarks.tables`: FBGEMM's static table, and TorchRec's ways from ids to its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class StaticTable:
    """FBGEMM's embedding table of fixed rows, whose optimizer runs in its backward pass.

    Args:
        num_rows: Rows.
        width: Of a row.
        optimizer: `adagrad` (row-wise) or `adam`.
        device: `cpu` or `cuda`.
    """

    def __init__(self, num_rows: int, width: int, optimizer: str, device: str) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        cuda = device == "cuda"
        location = EmbeddingLocation.DEVICE if cuda else EmbeddingLocation.HOST
        compute = ComputeDevice.CUDA if cuda else ComputeDevice.CPU
        self.device = device
        # FBGEMM has no Adam on the CPU; there the row-wise Adagrad stands in, whose step is less work.
        exact = EmbOptimType.ADAM if optimizer == "adam" and cuda else EmbOptimType.EXACT_ROWWISE_ADAGRAD
        self.table = SplitTableBatchedEmbeddingBagsCodegen(
            [(num_rows, width, location, compute)],
            optimizer=exact,
            pooling_mode=PoolingMode.NONE,
            learning_rate=0.01,
            eps=1e-8,
            device=torch.device(device),
        )
        self.table.init_embedding_weights_uniform(-0.01, 0.01)

    def lookup(self, rows: Tensor) -> Tensor:
        """Vectors of rows."""
        offsets = torch.arange(len(rows) + 1, device=rows.device)
        out: Tensor = self.table(rows, offsets)
        return out

    def train(self, rows: Tensor, grad: Tensor) -> None:
        """Lookup, backward pass and update."""
        self.lookup(rows).backward(grad)  # type: ignore[no-untyped-call]

    def steps(self, batches: Any, grad: Tensor) -> dict[str, Callable[[int], object]]:
        """The same work as `benchmarks.tables.steps_of_table`, from row numbers."""
        bags = torch.arange(len(grad) + 1, device=grad.device)

        def lookup(k: int) -> object:
            with torch.no_grad():
                return self.table(batches[k][1], bags)

        def step(k: int) -> None:
            self.table(batches[k][1], bags).backward(grad)

        return {"lookup": lookup, "step": step}


def _features(ids: Tensor) -> dict[str, Any]:
    from torchrec import JaggedTensor

    return {"f": JaggedTensor(values=ids, lengths=torch.ones_like(ids))}


def mch(batches: Any, num_rows: int, device: str, every: int) -> Callable[[int], Tensor]:
    """Remapping by `MCHManagedCollisionModule`, filled with all ids; it evicts every so many steps."""
    from torchrec.modules.mc_modules import DistanceLFU_EvictionPolicy, MCHManagedCollisionModule

    module = MCHManagedCollisionModule(
        zch_size=num_rows,
        device=torch.device(device),
        eviction_policy=DistanceLFU_EvictionPolicy(),
        eviction_interval=every,
    ).train()
    ids, _ = batches.all.sort()
    module._mch_sorted_raw_ids.copy_(ids)
    module._mch_remapped_ids_mapping.copy_(torch.arange(num_rows, device=device))
    for counts in module._mch_metadata.values():
        counts.fill_(1)

    def remap(k: int) -> Tensor:
        out = module.remap(module.profile(module.preprocess(_features(batches[k][0]))))
        rows: Tensor = out["f"].values()
        return rows.clamp(max=num_rows - 1)

    return remap


def hash_zch(batches: Any, num_rows: int, device: str) -> Callable[[int], Tensor]:
    """Remapping by `HashZchManagedCollisionModule` with half as many rows again, filled with all ids."""
    from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule

    module = HashZchManagedCollisionModule(
        zch_size=num_rows + num_rows // 2, device=torch.device(device), total_num_buckets=1
    ).train()
    for ids in batches.all.split(1 << 20):
        module.remap(_features(ids))

    def remap(k: int) -> Tensor:
        out: Tensor = module.remap(_features(batches[k][0]))["f"].values()
        return out

    return remap
