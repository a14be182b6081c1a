"""NVIDIA's Triton Inference Server, as the package `nvidia-pytriton` brings it: started, watched, stopped.

Of the package only the server and its Python backend are used. PyTriton's own way, a proxy that hands
batches to a callable in another process, answers every error with 500, fails a whole batch for one request of
it, and costs one more copy between processes; Triton's Python backend does none of that.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.util
import logging
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

from spark_jobs.contract import environment
from spark_jobs.contract.command import CommandError

logger = logging.getLogger(__name__)

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class TritonError(CommandError):
    """Triton is not installed or does not start; the message says what to do."""


def _package() -> Path:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise TritonError("Triton is not installed; install it: make setup (the package nvidia-pytriton)")
    return Path(spec.submodule_search_locations[0])


def write_backends(folder: Path) -> None:
    """Copies Triton's Python backend with the stub for this Python, which the package keeps apart."""
    server = _package() / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.is_file():
        raise TritonError(f"nvidia-pytriton has no stub for Python {python}; use 3.11 or 3.12")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(server / "backends" / "python", folder / "python")
    shutil.copy2(stub, folder / "python")


def _environment() -> dict[str, str]:
    """What the server and its stubs need to find: libpython, and the libraries that the package brings."""
    libraries = [sysconfig.get_config_var("LIBDIR"), str(_package().parent / "nvidia_pytriton.libs")]
    given = environment.text("LD_LIBRARY_PATH")
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # an instance computes with one
    return environment.child(
        {**threads, "LD_LIBRARY_PATH": ":".join([*libraries, *([given] if given else [])])}
    )


async def start(repository: Path, backends: Path, log: Path, port: int) -> asyncio.subprocess.Process:
    """Starts a server on loopback, HTTP on `port` and metrics on the next; it ends when this process does."""
    arguments = [
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={port + 1}",
        "--allow-grpc=false",
        "--allow-gpu-metrics=false",
        "--disable-auto-complete-config",
        "--model-control-mode=none",
        "--exit-timeout-secs=10",
    ]
    libc = ctypes.CDLL(None)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            str(_package() / "tritonserver" / "bin" / "tritonserver"),
            *arguments,
            stdout=output,
            stderr=output,
            env=_environment(),
            preexec_fn=lambda: libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM),
        )


def reason(log: Path) -> str:
    """The last error that Triton has logged, in one line; its log, where it has none."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("E")]
    told = lines[-1].partition("] ")[2].strip('"').partition("\\n\\nAt:")[0] if lines else ""
    return f"{told} (all of it: {log})" if told else f"see {log}"


async def stop(server: asyncio.subprocess.Process) -> None:
    """Stops a server; what is in flight is answered first."""
    if server.returncode is None:
        server.terminate()
        try:
            await asyncio.wait_for(server.wait(), 15)
        except TimeoutError:
            server.kill()
            await server.wait()
