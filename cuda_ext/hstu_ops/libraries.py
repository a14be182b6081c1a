"""Loads the compiled parts of the package, if they were built, and refuses those built for another PyTorch.

The build leaves `_cpu.so` and, with a CUDA toolkit, `_sm90.so` beside this file, and `_build.json` with the
PyTorch they were compiled for. From the sources alone there is none of them: the reference and the Triton
kernels still work.
"""

import importlib.util
import json
import logging
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_REBUILD = "run `pip install --force-reinstall --no-deps --no-build-isolation ./cuda_ext`"
_loaded: set[str] = set()
HAS_TRITON = importlib.util.find_spec("triton") is not None


def loaded(part: str) -> bool:
    """Tells whether the compiled part `cpu` or `sm90` was found and loaded."""
    return part in _loaded


def load() -> None:
    """Loads each compiled part that was built; from the sources alone there is none.

    Raises:
        ImportError: a part is lost, was built for another PyTorch, or does not load; the message has the
            build command.
    """
    record = _FOLDER / "_build.json"
    build = json.loads(record.read_text()) if record.exists() else {"torch": "unknown", "parts": []}
    for part in ("cpu", "sm90"):
        path = _FOLDER / f"_{part}.so"
        if not path.exists():
            if part in build["parts"]:
                raise ImportError(f"{path} is missing, though it was built: {_REBUILD}")
            continue
        built_for = build["torch"]
        if built_for != torch.__version__:
            raise ImportError(
                f"{path} was built for PyTorch {built_for}, this is PyTorch {torch.__version__}: {_REBUILD}"
            )
        try:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise ImportError(f"{path} does not load ({error}): {_REBUILD}") from error
        _loaded.add(part)
        logger.debug("loaded %s", path)
