"""How the benchmarks time, and what they write down about the machine, so that a number can be redone."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spark_jobs.contract import environment

# What runs, by (side, passes).
Steps = dict[tuple[str, str], Callable[[], object]]
Times = dict[tuple[str, str], list[float]]
PASSES = ("forward", "forward + backward")


def both_passes(side: str, forward: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Steps:
    """Returns the forward pass without a graph, and forward and backward with gradients of all inputs."""
    cotangent = torch.randn_like(forward(*inputs))

    def only_forward() -> Tensor:
        with torch.no_grad():
            return forward(*inputs)

    def with_backward() -> object:
        return torch.autograd.grad(forward(*inputs), inputs, cotangent)

    return {(side, PASSES[0]): only_forward, (side, PASSES[1]): with_backward}


def _capture(step: Callable[[], object]) -> Callable[[], object]:
    """Returns the replay of a step's CUDA graph: what the GPU takes, without the host's cost of launching."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _time_on_cpu(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def _time_on_gpu(step: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def measure(steps: Steps, device: str, repeats: int) -> Times:
    """Warms every step up, then lets them take turns; returns the milliseconds of each.

    On a GPU a step is replayed from a CUDA graph; its working set should be larger than the cache.
    """
    timer = _time_on_cpu if device == "cpu" else _time_on_gpu
    ready = steps if device == "cpu" else {key: _capture(step) for key, step in steps.items()}
    times: Times = {key: [] for key in steps}
    for step in ready.values():
        for _ in range(1 if device == "cpu" else 5):
            step()
    for _ in range(repeats):
        for key, step in ready.items():
            times[key].append(timer(step))
    return times


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Returns median, quartiles and number of some milliseconds."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median_ms": round(median, 4),
        "quartiles_ms": [round(low, 4), round(high, 4)],
        "repeats": len(values),
    }


def ratios(results: Sequence[dict[str, Any]], ours: Sequence[str]) -> list[dict[str, Any]]:
    """Returns how many times as fast each of our sides of an attention is as each other side, per pair."""
    speed: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result["operator"] == "mtgr_attention":
            speed.setdefault((result["workload"], result["side"]), []).append(result["tflops"])
    faster = []
    for (workload, side), fast in speed.items():
        for (other_workload, other), slow in speed.items():
            if side in ours and other_workload == workload and other != side:
                times = (round(a / b, 3) for a, b in zip(fast, slow, strict=True))
                ratio = dict(zip(PASSES, times, strict=True))
                faster.append({"workload": workload, "side": side, "against": other, **ratio})
    return faster


def _commit() -> str:
    """The commit of the sources, marked if they differ; outside of a repository what HSTU_OPS_COMMIT says."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        command = ["git", *arguments]
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return environment.text("HSTU_OPS_COMMIT", "unknown")
    return commit + (" with changes" if git("status", "--porcelain", "--", "cuda_ext", "benchmarks") else "")


def machine(device: str) -> dict[str, Any]:
    """Returns the commit, versions and machine that the numbers belong to."""
    facts: dict[str, Any] = {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cuda":
        import triton  # type: ignore[import-untyped]

        facts |= {
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "device": torch.cuda.get_device_name(),
        }
    else:
        load = f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} cores"
        cpu = torch.backends.cpu.get_cpu_capability()
        facts |= {"threads": torch.get_num_threads(), "cpu": cpu, "load average": load}
    return facts
