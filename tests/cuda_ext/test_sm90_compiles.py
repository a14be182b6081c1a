"""The sm90a kernels compile without a GPU, and the compiler keeps their matrix products asynchronous.

nvcc and CUTLASS's headers come with the lock on Linux; elsewhere, without a toolkit, the compile tests are
skipped. Both passes of head dim 256 in bfloat16 are compiled in every run (10 seconds of one core each), all
twelve by `make test-slow`; `HSTU_OPS_CUDA=1 pip install ./cuda_ext` links them where there is a GPU.
"""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

SM90 = Path(__file__).parents[2] / "cuda_ext" / "csrc" / "sm90"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hstu_ops_sm90_build", SM90 / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_pass(build: ModuleType, folder: Path, part: str, head_dim: int, dtype: str) -> None:
    toolkit = build.find_toolkit()
    if toolkit is None:
        pytest.skip("no CUDA toolkit or CUTLASS headers: see cuda_ext/csrc/sm90/build.py")
    source = folder / f"{part}.cu"
    source.write_text(build.instance_source(part, head_dim, dtype))
    nvcc = toolkit.home / "bin" / "nvcc"
    includes = [f"-I{path}" for path in (SM90, *toolkit.include)]
    command = [nvcc, *build.NVCC_FLAGS, "-Xptxas=-v", *includes, "-c", source, "-o", folder / "o.o"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "sm_90a" in result.stderr
    # C7510 to C7514: ptxas runs the wgmma instructions one by one, which costs a third of the speed.
    assert "wgmma.mma_async instructions are serialized" not in result.stderr


@pytest.mark.parametrize("part", ["forward", pytest.param("backward", marks=pytest.mark.slow)])
def test_pass_compiles(build, part, tmp_path):
    compile_pass(build, tmp_path, part, 256, "kBFloat16")


@pytest.mark.parametrize("name", ["norm_backward", pytest.param("serve", marks=pytest.mark.slow)])
def test_other_kernels_compile(build, tmp_path, name):
    toolkit = build.find_toolkit()
    if toolkit is None:
        pytest.skip("no CUDA toolkit or CUTLASS headers: see cuda_ext/csrc/sm90/build.py")
    includes = [f"-I{path}" for path in (SM90, *toolkit.include)]
    source = SM90 / f"{name}.cu"
    command = [
        toolkit.home / "bin" / "nvcc",
        *build.NVCC_FLAGS,
        *includes,
        "-c",
        source,
        "-o",
        tmp_path / "o.o",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "wgmma.mma_async instructions are serialized" not in result.stderr


@pytest.mark.slow
def test_all_passes_compile(build, tmp_path):
    for part in build.PASSES:
        for head_dim in build.HEAD_DIMS:
            for dtype in build.DTYPES:
                compile_pass(build, tmp_path, part, head_dim, dtype)


def test_every_pass_of_every_head_dim_and_dtype_is_built(build, tmp_path):
    names = {Path(path).name for path in build._write_instances(tmp_path)}
    assert names == {
        f"{part}_{dim}_{dtype}.cu"
        for part in ("forward", "backward")
        for dim in (64, 128, 256)
        for dtype in ("kBFloat16", "kFloat16")
    }
    text = (tmp_path / "backward_64_kFloat16.cu").read_text()
    assert "HSTU_PASS backward" in text
    assert "HSTU_HEAD_DIM 64" in text


def test_a_toolkit_asked_for_and_not_there_is_an_error(build, monkeypatch):
    monkeypatch.setenv("HSTU_OPS_CUDA", "1")
    monkeypatch.setattr(build, "_homes", lambda: [Path("/nowhere")])
    monkeypatch.setattr(build, "_cuda_major", lambda: 13)
    with pytest.raises(SystemExit, match="no nvcc of CUDA 13, as PyTorch is: set CUDA_HOME"):
        build.find_toolkit()
    monkeypatch.setenv("HSTU_OPS_CUDA", "auto")
    assert build.find_toolkit() is None


def test_the_first_toolkit_of_pytorchs_cuda_is_taken(build, monkeypatch, tmp_path):
    for version in (12, 13, 14):
        nvcc = tmp_path / str(version) / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}.0, V{version}.0.1'\n")
        nvcc.chmod(0o755)
    (tmp_path / "cute").mkdir()
    monkeypatch.setenv("HSTU_OPS_CUDA", "1")
    monkeypatch.setattr(build, "_cuda_major", lambda: 13)
    monkeypatch.setattr(build, "_cutlass", lambda: tmp_path)
    monkeypatch.setattr(build, "_homes", lambda: [tmp_path / "12", tmp_path / "13", tmp_path / "14"])
    assert build.find_toolkit().home == tmp_path / "13"
    monkeypatch.setattr(build, "_homes", lambda: [tmp_path / "12"])
    with pytest.raises(
        SystemExit, match=r"no nvcc of CUDA 13, as PyTorch is, .*12 is another: set CUDA_HOME"
    ):
        build.find_toolkit()
