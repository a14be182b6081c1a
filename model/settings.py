"""What the commands of this package share: the device they run on and how they log."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
import warnings

import torch


def device_of(name: str) -> torch.device:
    """The device called `auto`, `cpu` or `cuda`; under torchrun the one of this rank.

    On a CPU, `MTGR_THREADS` (default 1) threads compute.

    Raises:
        ValueError: It is none of these, or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"MTGR_DEVICE is {name!r}; use auto, cpu or cuda")
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("MTGR_DEVICE is cuda, but torch finds no GPU here; use cpu, or install a driver")
    if name == "cpu" or not has_gpu:
        # Small models gain nothing from more threads, and lose much when other processes share the cores.
        torch.set_num_threads(int(os.environ.get("MTGR_THREADS", "1")))
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


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


def configure_logging() -> None:
    """Logs of a command: to stderr, one line each, without the libraries' known warnings."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, force=True, format="%(levelname)s %(name)s: %(message)s"
    )
    for name in ("__main__", "model", "hstu_ops", "spark_jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torchrec")
    warnings.filterwarnings("ignore", message=".*ShardedTensor.*")
