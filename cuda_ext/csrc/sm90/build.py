"""How the sm90a library is compiled: the toolkit, the headers, the sources and the flags; called by setup.py.

A toolkit is an nvcc of PyTorch's own CUDA major version, from CUDA_HOME, the PATH, /usr/local/cuda or PyPI's
packages, and the headers of CUTLASS, from CUTLASS_PATH or PyPI's nvidia-cutlass. Without a system toolkit:

    pip install nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    pip install nvidia-cuda-cccl==13.0.85 nvidia-cutlass==4.2.0.0

Each pass of each head dim and dtype is a source of its own, written into the build folder, so that they
compile side by side: 12 units of 10 to 20 seconds and under 1.5 GB each.
"""

import importlib.util
import logging
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
PASSES = ("forward", "backward")
HEAD_DIMS = (64, 128, 256)
DTYPES = ("kBFloat16", "kFloat16")
NVCC_FLAGS = (
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-DNDEBUG",
    "-diag-suppress=177",
    "-lineinfo",
    "-t1",
)


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """A CUDA toolkit's folder (bin/nvcc, include) and the folder of CUTLASS's headers."""

    home: Path
    cutlass: Path

    @property
    def include(self) -> list[str]:
        """Folders to include; CUDA 13 keeps libcu++ apart."""
        folders = [self.cutlass, self.home / "include" / "cccl", self.home / "include"]
        return [str(folder) for folder in folders if folder.is_dir()]

    @property
    def runtime(self) -> Path:
        """The shared CUDA runtime: PyTorch's own, so that both agree on the current device."""
        name = f"libcudart.so.{_cuda_major()}"
        packages = [Path(folder) / f"cu{_cuda_major()}" / "lib" for folder in _nvidia_packages()]
        for folder in (*packages, self.home / "lib64", self.home / "lib"):
            if (folder / name).exists():
                return folder / name
        raise SystemExit(f"no {name} in the packages of PyTorch or under {self.home}")


def _cuda_major() -> int:
    return int((torch.version.cuda or "0").split(".")[0])


def _nvidia_packages() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _homes() -> list[Path]:
    """Where a toolkit may be, the most explicit first."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    of_path = [Path(on_path).resolve().parent.parent] if on_path else []
    packages = [Path(folder) / f"cu{_cuda_major()}" for folder in _nvidia_packages()]
    return [*map(Path, named), *of_path, Path("/usr/local/cuda"), *packages]


def _cutlass() -> Path | None:
    """The folder that holds `cute/` and `cutlass/`, or None."""
    if os.environ.get("CUTLASS_PATH"):
        return Path(os.environ["CUTLASS_PATH"]) / "include"
    spec = importlib.util.find_spec("cutlass_library")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        include = Path(folder) / "source" / "include"
        if include.is_dir():
            return include
    return None


def _nvcc_major(nvcc: Path) -> int:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.", text)
    return int(release.group(1)) if release else 0


def find_toolkit() -> Toolkit | None:
    """Finds what the library needs, or None with the reason logged.

    Raises:
        SystemExit: It is not there, and HSTU_OPS_CUDA=1 asks for it; with the reason.
    """
    homes = [home for home in _homes() if (home / "bin" / "nvcc").exists()]
    home = next((home for home in homes if _nvcc_major(home / "bin" / "nvcc") == _cuda_major()), None)
    cutlass = _cutlass()
    if _cuda_major() == 0:
        reason = f"PyTorch {torch.__version__} has no CUDA: install a CUDA build of it"
    elif home is None:
        of = f"no nvcc of CUDA {_cuda_major()}, as PyTorch is" + "".join(
            f", {home} is another" for home in homes
        )
        reason = f"{of}: set CUDA_HOME, or `pip install nvidia-cuda-nvcc==13.0.88 nvidia-cuda-cccl==13.0.85`"
    elif cutlass is None or not (cutlass / "cute").is_dir():
        reason = "no CUTLASS headers: set CUTLASS_PATH, or `pip install nvidia-cutlass==4.2.0.0`"
    else:
        return Toolkit(home=home, cutlass=cutlass)
    if os.environ.get("HSTU_OPS_CUDA") == "1":
        raise SystemExit(f"HSTU_OPS_CUDA=1, but the sm90a library cannot be built: {reason}")
    logger.warning("hstu_ops is built without its sm90a library: %s", reason)
    return None


def instance_source(part: str, head_dim: int, dtype: str) -> str:
    """The text of one instance's source."""
    return (
        f"#define HSTU_PASS {part}\n#define HSTU_HEAD_DIM {head_dim}\n#define HSTU_DTYPE {dtype}\n"
        '#include "instance.cu"\n'
    )


def _write_instances(folder: Path) -> list[str]:
    """Writes the sources of all instances; one that has not changed is left, so that it is not rebuilt."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part in PASSES:
        for head_dim in HEAD_DIMS:
            for dtype in DTYPES:
                path = folder / f"{part}_{head_dim}_{dtype}.cu"
                text = instance_source(part, head_dim, dtype)
                if not path.exists() or path.read_text() != text:
                    path.write_text(text)
                paths.append(str(path))
    return paths


def extension(toolkit: Toolkit, link: list[str]) -> Any:
    """Describes the library `hstu_ops/_sm90.so` to setuptools; `link` is given to its linker, too."""
    cpp_extension.CUDA_HOME = str(toolkit.home)  # read when it composes nvcc's command
    root = HERE.parent.parent
    names = ("binding", "norm_binding", "serve_binding"), ("api", "norm_backward", "serve")
    files = [*(f"{name}.cpp" for name in names[0]), *(f"{name}.cu" for name in names[1])]
    sources = [str((HERE / name).relative_to(root)) for name in files]
    sources += [f"csrc/tables/{name}" for name in ("tables_cuda.cpp", "keys.cu", "rows.cu")]
    sources += _write_instances(root / "build" / "sm90")
    return cpp_extension.CppExtension(  # type: ignore[no-untyped-call]
        "hstu_ops._sm90",
        sources,
        include_dirs=[str(HERE), *toolkit.include],
        libraries=["c10_cuda", "torch_cuda"],
        extra_compile_args={"cxx": ["-O2", "-std=c++17", "-g0"], "nvcc": list(NVCC_FLAGS)},
        extra_link_args=[str(toolkit.runtime), *link],
    )
