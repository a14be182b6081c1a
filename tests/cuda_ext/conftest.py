"""Makes `hstu_ops` importable from its sources, and runs a test that takes `backend` once for each."""

import importlib.util
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("hstu_ops") is None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "cuda_ext"))

import hstu_ops


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs tests that take `backend` on the CPU backend, and those marked `gpu` on the two GPU backends."""
    if "backend" not in metafunc.fixturenames:
        return
    on_gpu = metafunc.definition.get_closest_marker("gpu") is not None
    metafunc.parametrize("backend", ["triton", "cutlass"] if on_gpu else ["cpu"])


@pytest.fixture(autouse=True)
def _cutlass_is_built(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames and request.getfixturevalue("backend") == "cutlass":
        if not hstu_ops.libraries.loaded("sm90"):
            pytest.skip("the CUTLASS library is not built: HSTU_OPS_CUDA=1 pip install ./cuda_ext")
