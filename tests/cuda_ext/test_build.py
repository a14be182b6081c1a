"""What `cuda_ext/setup.py` does beside compiling: it links PyTorch's C++ library, and makes a check fail."""

import importlib.util
from pathlib import Path
from types import ModuleType

import hstu_ops
import pytest

SETUP = Path(__file__).parents[2] / "cuda_ext" / "setup.py"


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hstu_ops_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cxx_library_of_this_process_is_linked(setup):
    (path,) = setup.cxx_runtime()
    assert Path(path).name.startswith("libstdc++.so")
    assert path in setup.cpu_extension().extra_link_args


@pytest.mark.parametrize(("part", "key"), [("cpu", "CPU"), ("sm90", "CUDA")])
def test_a_check_that_fails_raises(setup, part, key):
    if not hstu_ops.libraries.loaded(part):
        pytest.skip(f"the library {part} is not built")
    setup.provoke(Path(hstu_ops.__file__).parent / f"_{part}.so", key)


def test_a_library_whose_checks_do_not_raise_is_refused(setup, tmp_path):
    library = tmp_path / "_cpu.so"
    library.write_text("no library")
    with pytest.raises(SystemExit, match="does not raise, it ends the process"):
        setup.provoke(library, "CPU")
