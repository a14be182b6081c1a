"""compute-sanitizer finds nothing in the GPU kernels: memcheck and racecheck over small awkward rows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hstu_ops
import pytest

PROGRAM = """
import sys
import torch
from hstu_ops import gated_attention, group_layer_norm, mtgr_attention
from benchmarks.shapes import Jagged

backend = sys.argv[1]
rows = Jagged.random(
    static=[0, 1, 40, 50, 100, 120], realtime=[0, 0, 10, 10, 20, 30], candidates=[0, 0, 13, 5, 9, 50]
).to("cuda")
lengths = rows.offsets.diff().tolist()
assert lengths == [0, 1, 63, 65, 129, 200], lengths
weight, bias = (torch.ones(4, 1, device="cuda", requires_grad=True) for _ in range(2))
for dtype in (torch.bfloat16, torch.float16):
    for head_dim in (64, 128, 256):
        uvqk = torch.randn(rows.num_tokens, 4, 2, head_dim, device="cuda").to(dtype).requires_grad_()
        u, v, q, k = uvqk.unbind(1)
        out = mtgr_attention(q, k, v, rows.offsets, rows.visible_end, 0.1, 0.1, backend=backend)
        torch.autograd.grad(out, uvqk, torch.randn_like(out))
        scale, shift = (part.expand(4, 2 * head_dim).contiguous() for part in (weight, bias))
        rest = (rows.offsets, rows.visible_end, rows.group, scale, shift, 0.1, 0.1, 1e-5)
        y = gated_attention(uvqk, *rest, backend=backend)
        torch.autograd.grad(y, (uvqk, weight, bias), torch.randn_like(y))
torch.cuda.synchronize()
print("the program ended")
"""
CLEAN = {"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": "RACECHECK SUMMARY: 0 hazards displayed"}


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tool", CLEAN)
def test_sanitizer_finds_nothing(backend, tool):
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        pytest.skip("no compute-sanitizer: it comes with the CUDA toolkit")
    sources = str(Path(hstu_ops.__file__).parents[1])
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": sources}
    command = [sanitizer, "--tool", tool, sys.executable, "-c", PROGRAM, backend]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert "the program ended" in run.stdout, run.stdout[-4000:] + run.stderr[-4000:]
    assert CLEAN[tool] in run.stdout, run.stdout[-8000:]
