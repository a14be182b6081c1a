"""Environment variables of `model`, and what they say of the machine.

| variable | what | default |
|---|---|---|
| `MTGR_DEVICE` | where to compute: `auto`, `cpu` or `cuda` | `auto`: a GPU if there is one |
| `MTGR_THREADS` | threads that compute on a CPU | 1 |
| `RANK`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | set by torchrun | one process alone |
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping

import torch

from spark_jobs.contract import environment
from spark_jobs.contract.command import UsageError


def device_type() -> str:
    """Whether to compute on `cpu` or `cuda`.

    Raises:
        UsageError: `MTGR_DEVICE` is none of auto, cpu and cuda, or there is no GPU.
    """
    name = environment.text("MTGR_DEVICE", "auto")
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"MTGR_DEVICE is {name!r}; use auto, cpu or cuda")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UsageError("MTGR_DEVICE is cuda, but torch finds no GPU here; use cpu, or install a driver")
    return "cuda" if has_gpu and name != "cpu" else "cpu"


def device() -> torch.device:
    """Where to compute, see `device_type`; under torchrun the device of this rank."""
    if device_type() == "cpu":
        # Small models gain nothing from more threads, and lose much when other processes share the cores.
        torch.set_num_threads(environment.whole("MTGR_THREADS", 1, low=1))
        return torch.device("cpu")
    chosen = torch.device("cuda", environment.whole("LOCAL_RANK", 0))
    torch.cuda.set_device(chosen)
    return chosen


def rank() -> int:
    """This process's rank among those that train together."""
    return environment.whole("RANK", 0)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def reader_threads() -> int:
    """Threads that make tensors of rows beside the one that computes: its share of the cores, up to 4."""
    own = cores() // environment.whole("LOCAL_WORLD_SIZE", 1, low=1)
    return max(1, min(4, own - 1))


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return bool(environment.text("RANK"))


def configure_mlflow(defaults: Mapping[str, str]) -> None:
    """Sets MLflow's environment for this process: defaults where nothing is set; never pickle."""
    environment.set_defaults(defaults)
    environment.override({"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})


def installed_fbgemm() -> str:
    """The package of FBGEMM that is installed: the one for CPUs or the one for NVIDIA GPUs.

    Raises:
        PackageNotFoundError: None of the two is.
    """
    try:
        importlib.metadata.version("fbgemm-gpu")
        return "fbgemm-gpu"
    except importlib.metadata.PackageNotFoundError:
        importlib.metadata.version("fbgemm-gpu-cpu")
        return "fbgemm-gpu-cpu"
