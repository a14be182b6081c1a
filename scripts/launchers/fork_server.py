"""Runs the steps of the embedded run as forks of one process that has loaded what they import.

PyTorch, TorchRec, MLflow and Great Expectations take 15 s of a core to import, and the ten steps of a small
day would spend more on that than on their work. This process imports them once;
`scripts/launchers/forked.py`, the steps' launcher, asks it over a socket for a fork that runs `-m <module>
...` with the caller's environment, folder and open files. A step stays a process of its own: signals to the
caller reach it, it dies with the caller, and its exit code is the caller's. Started by
`scripts.embedded.components`; a machine with a GPU does without, since CUDA does not survive a fork
(`EmbeddedSettings.forks_steps`).

A request is the caller's standard files as SCM_RIGHTS beside 4 bytes, the length of the JSON object that
follows: `{"argv", "cwd", "env"}`. Then the caller sends one byte a signal, and gets one byte, the exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from scripts.embedded.processes import end_with_parent
from scripts.embedded.settings import take_over

LIBRARIES = (
    "pandas",
    "pyarrow.dataset",
    "deltalake",
    "pyspark.sql.connect.session",
    "great_expectations",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_store",
    "safetensors.torch",
    "torchrec.distributed",
)
_OWN = ("dags", "expectations", "model", "scripts", "spark_jobs")
_REQUEST_S = 10.0
_KILLED = 128  # a shell's exit code of a program that a signal ended is this and the signal's number


def load(libraries: Sequence[str] = LIBRARIES) -> None:
    """Imports libraries and keeps the garbage collector from touching, and so from copying, them in forks."""
    from model.registry import store as mlflow_store

    mlflow_store.configure()
    importlib.import_module("expectations")  # sets what Great Expectations reads at its import
    for name in libraries:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


class _Steps:
    """The forks that run, and their callers.

    Args:
        listener: The listening socket.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._pids: dict[socket.socket, int] = {}
        self._words: dict[int, Sequence[str]] = {}

    def serve(self) -> Mapping[str, Any]:
        """Serves requests; returns only in a fork, with the request that it is to run."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    caller, _ = self._listener.accept()
                    request = self._accept(caller)
                    if request is not None:
                        return request
                elif key.data is not None:
                    self._reap(key.fd, key.data)
                elif key.fileobj in self._pids:  # else its step has just been reaped
                    self._signal(key.fileobj)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Kills the forks that run."""
        for pid in self._pids.values():
            _kill(pid, signal.SIGKILL)

    def _accept(self, caller: socket.socket) -> Mapping[str, Any] | None:
        """Forks for a caller; returns its request in the fork, None in the server."""
        caller.settimeout(_REQUEST_S)
        files: list[int] = []
        try:
            size, files, _, _ = socket.recv_fds(caller, 4, 3)
            with caller.makefile("rb") as file:
                request: Mapping[str, Any] = json.loads(file.read(int.from_bytes(size, "big")))
        except (OSError, ValueError) as error:  # a caller that was killed while it asked
            sys.stderr.write(f"no request: {error}\n")
            sys.stderr.flush()
            caller.close()
            return None
        else:
            caller.settimeout(None)
            pid = os.fork()
            if pid == 0:
                self._become(caller, files)
                return request
            os.setpgid(pid, pid)  # also here: a signal may come before the fork has done it
            self._pids[caller] = pid
            self._words[pid] = request["argv"]
            self._selector.register(caller, selectors.EVENT_READ)
            self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, caller)
            return None
        finally:
            for file_number in files:
                os.close(file_number)

    def _become(self, caller: socket.socket, files: Sequence[int]) -> None:
        """In a fork: lets go of the server's sockets and takes the caller's standard files."""
        os.setpgid(0, 0)
        end_with_parent()
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
        self._selector.close()
        self._listener.close()
        for other in self._pids:
            other.close()
        caller.close()
        for number, file_number in enumerate(files):
            os.dup2(file_number, number)

    def _signal(self, caller: socket.socket) -> None:
        """Passes a caller's signals on; a caller that is gone takes its step along."""
        try:
            numbers = caller.recv(16)
        except OSError:
            numbers = b""
        for number in numbers or (signal.SIGKILL,):
            _kill(self._pids[caller], number)
        if not numbers:
            self._selector.unregister(caller)

    def _reap(self, pid_file: int, caller: socket.socket) -> None:
        """Tells a caller how its step ended; whatever the step has left running ends, too."""
        self._selector.unregister(pid_file)
        os.close(pid_file)
        pid = self._pids.pop(caller)
        _kill(pid, signal.SIGKILL)  # before the wait, which gives the number of its group free
        _, status, used = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        _tell({"step": self._words.pop(pid), "code": code, "ended": time.time(),
               "cpu_seconds": round(used.ru_utime + used.ru_stime, 2)})  # fmt: skip
        with contextlib.suppress(OSError):  # the caller was killed
            caller.sendall(bytes([code if code >= 0 else _KILLED - code]))
        with contextlib.suppress(KeyError):
            self._selector.unregister(caller)
        caller.close()


def _tell(record: Mapping[str, Any]) -> None:
    """Writes a line to the server's log: what a step has cost (`scripts/embedded/costs.py` reads it)."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _kill(pid: int, number: int) -> None:
    """Sends a signal to a step and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def run(request: Mapping[str, Any]) -> None:
    """Runs a request in this process as `python -m` would."""
    take_over(request["env"])
    os.chdir(request["cwd"])
    option, module, *arguments = request["argv"]
    if option != "-m":
        sys.exit(f"the launcher runs -m <module> ..., not {' '.join(request['argv'])!r}")
    sys.argv = [module, *arguments]
    for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
        del sys.modules[
            name
        ]  # a step runs the sources as they are now, not as they were when the server started
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is not None and not isinstance(ended.code, int):
            raise  # a message, which Python prints
        _leave(ended.code or 0)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """Ends a fork as Python ends, but frees nothing: what came with the fork would be copied for that.

    Half a second a step, which its caller would wait for.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


def serve(path: Path) -> Mapping[str, Any]:
    """Listens at `path`; returns only in a fork, with the request that it is to run."""
    here = Path.cwd()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        before = os.umask(0o077)
        listener.bind(path.name)
        os.umask(before)
        os.chdir(here)
        listener.listen()
        steps = _Steps(listener)

        def stop(number: int, frame: FrameType | None) -> None:
            path.unlink(missing_ok=True)
            steps.stop()
            os._exit(0)

        signal.signal(signal.SIGTERM, stop)
        return steps.serve()


def main() -> None:
    """Loads the libraries, serves, and in every fork runs a step."""
    load()
    run(serve(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
