"""Builds `hstu_ops`: the CPU library always, the sm90a library where a CUDA toolkit is found or asked for.

    pip install --no-build-isolation ./cuda_ext                  # CPU; CUTLASS too if nvcc is found
    HSTU_OPS_CUDA=1 pip install --no-build-isolation ./cuda_ext  # CUTLASS, or fail
    HSTU_OPS_CUDA=0 pip install --no-build-isolation ./cuda_ext  # CPU only

What is built follows the toolkit and `HSTU_OPS_CUDA`, never whether a GPU is present. `MAX_JOBS` bounds the
compilers that run at once; unset, it follows the cores and the free memory. The environment's own PyTorch is
compiled against, so build isolation must be off.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

HERE = Path(__file__).parent

GIB_PER_CPU_JOB = 1.5

# Calls a library's kernel by its dispatch key with CPU tensors and offsets that run past T: both refuse.
PROVOKE = """
import runpy, sys
import torch

schemas, library, key = sys.argv[1:]
defined = runpy.run_path(schemas)
torch.ops.load_library(library)
q = torch.zeros(4, 1, 64)
offsets, visible_end = torch.tensor([0, 9], dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
try:
    torch.ops.hstu_ops.mtgr_attention.default.redispatch(keys, q, q, q, offsets, visible_end, 1.0, 1.0, False)
except ValueError:
    print("raised")
"""


def cxx_runtime() -> list[str]:
    """The C++ library that PyTorch runs with, to link by its path.

    A compiler that brings a C++ library of its own, a static one at that, would link it, and what one such
    library throws ends the process in another.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return [line.split()[-1] for line in lines if "/libstdc++.so" in line][:1]


def provoke(library: Path, key: str) -> None:
    """Makes a check of a library fail, as its last step of building; SystemExit if that does not raise."""
    command = [sys.executable, "-c", PROVOKE, str(HERE / "hstu_ops" / "schemas.py"), str(library), key]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.stdout != "raised\n":
        raise SystemExit(
            f"a check that fails in {library} does not raise, it ends the process "
            f"(exit code {run.returncode}): build with another compiler, by CXX\n{run.stderr[-2000:]}"
        )


def cpu_extension() -> Any:
    """The library `hstu_ops/_cpu.so`, for any machine of this architecture (see csrc/cpu/vector_math.cpp)."""
    flags = [
        "-O3",
        "-std=c++17",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-g0",
        "-Wall",
        "-Wno-unknown-pragmas",
    ]
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    return CppExtension(
        "hstu_ops._cpu",
        [
            *sorted(str(path.relative_to(HERE)) for path in (HERE / "csrc" / "cpu").glob("*.cpp")),
            "csrc/tables/tables_cpu.cpp",
        ],
        extra_compile_args={"cxx": flags + openmp},
        extra_link_args=[*openmp, *cxx_runtime()],
    )


def sm90_module() -> Any:
    """The module `csrc/sm90/build.py`, which knows toolkit, sources and flags of the CUTLASS library."""
    path = HERE / "csrc" / "sm90" / "build.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("hstu_ops_sm90_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def extensions() -> list[Any]:
    """What to build here, by `HSTU_OPS_CUDA` and the toolkit; raises SystemExit if asked in vain."""
    wish = os.environ.get("HSTU_OPS_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"HSTU_OPS_CUDA is {wish!r}: use 0, 1, or leave it unset")
    built = [cpu_extension()]
    sm90 = sm90_module() if wish != "0" else None
    toolkit = sm90.find_toolkit() if sm90 is not None else None
    if toolkit is not None:
        built.append(sm90.extension(toolkit, cxx_runtime()))
    elif wish == "1":
        raise SystemExit(
            "HSTU_OPS_CUDA=1, but there is no CUDA toolkit: set CUDA_HOME, or install nvidia-cuda-nvcc"
        )
    return built


class Build(BuildExtension):
    """Builds with a bounded number of jobs and writes down which PyTorch the libraries were compiled for."""

    def run(self) -> None:
        """Compiles, then writes `hstu_ops/_build.json` beside the libraries."""
        if "MAX_JOBS" not in os.environ:
            free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
            os.environ["MAX_JOBS"] = str(max(1, min(os.cpu_count() or 1, int(free_gib / GIB_PER_CPU_JOB))))
        folder = (HERE if self.inplace else Path(self.build_lib)) / "hstu_ops"
        record = folder / "_build.json"
        if not record.exists() or json.loads(record.read_text())["torch"] != torch.__version__:
            self.force = True  # what lies there was compiled for another PyTorch
        super().run()
        parts = [extension.name.rpartition("_")[2] for extension in self.extensions]
        for part in {"cpu", "sm90"}.difference(parts):
            (folder / f"_{part}.so").unlink(missing_ok=True)  # left by an earlier build
        for part in parts:
            provoke(folder / f"_{part}.so", {"cpu": "CPU", "sm90": "CUDA"}[part])
        record.write_text(json.dumps({"torch": torch.__version__, "parts": parts}))


if __name__ == "__main__":
    setup(
        packages=["hstu_ops", "hstu_ops.triton_ops"],
        package_data={"hstu_ops": ["py.typed"]},
        ext_modules=extensions(),
        cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=True)},
    )
