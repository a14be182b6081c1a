"""How much memory one row's attention takes on the CPU, forward and backward, by the row's length.

Each length runs in a process of its own, whose peak is read before and after (Linux: VmHWM, since getrusage
starts from the peak of the process that started this one); run as a script it is that process.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from spark_jobs.contract import environment

LENGTHS = (2_000, 4_000, 8_000)
HEAD_DIM = 32


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def _grown_kib(tokens: int) -> int:
    import torch
    from hstu_ops.attention import mtgr_attention

    def run(length: int) -> None:
        q, k, v = (torch.ones(length, 1, HEAD_DIM, requires_grad=True) for _ in range(3))
        offsets = torch.tensor([0, length], dtype=torch.int32)
        end = torch.full((length,), length, dtype=torch.int32)
        mtgr_attention(q, k, v, offsets, end, 0.1, 0.1, backend="cpu").sum().backward()  # type: ignore[no-untyped-call]

    run(64)  # what the first call of all allocates once
    before = _peak_kib()
    run(tokens)
    return _peak_kib() - before


def memory() -> list[dict[str, Any]]:
    """Returns by length the MiB by which the process grew, its tensors among them, and those of N x N."""
    lines = []
    for tokens in LENGTHS:
        sources = f"{Path(__file__).resolve().parents[1]}:{environment.text('PYTHONPATH')}"
        variables = environment.child({"PYTHONPATH": sources, "OMP_NUM_THREADS": "1"})
        command = [sys.executable, "-m", "benchmarks.attention_memory", str(tokens)]
        run = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        grown, square = int(run.stdout) / 1024, tokens**2 * 4 / 2**20
        lines.append({"tokens": tokens, "grown_mib": round(grown, 1), "one_square_mib": round(square, 1)})
    return lines


if __name__ == "__main__":
    sys.stdout.write(str(_grown_kib(int(sys.argv[1]))))
