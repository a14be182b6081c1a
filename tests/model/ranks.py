"""Ranks that tests start: forks of one process that has loaded PyTorch and TorchRec, in a process group."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# To import them takes a rank seven seconds of a core, and most ranks work for one.
_LOADED = ["pytest", "deltalake", "model.training.loop", "model.data.synthetic", "model.judging.contest"]


def on_ranks(num_ranks: int, work: Callable[..., None], *args: Any) -> None:
    """Runs `work(*args)` on each of `num_ranks` ranks on the CPU, in the caller's environment."""
    multiprocessing.set_forkserver_preload(_LOADED)
    with tempfile.TemporaryDirectory() as folder:
        common = (num_ranks, f"{folder}/store", dict(os.environ), work, args)
        mp.start_processes(_on_rank, common, num_ranks, start_method="forkserver")


def _on_rank(
    rank: int, num_ranks: int, store: str, environ: dict[str, str], work: Callable[..., None], args: Any
) -> None:
    os.environ.clear()  # a fork has the environment in which the first one was asked for
    os.environ.update(environ)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, num_ranks), rank=rank, world_size=num_ranks)
    work(*args)
    dist.destroy_process_group()
