"""Processes that are started together and leave nothing behind, however their starter ends.

A component runs in a session of its own, so that Ctrl-C reaches only its starter, which stops components in
reverse order: SIGTERM, then SIGKILL. The starter is made the reaper of all its descendants (Linux), so a step
whose parent died is found and stopped too; and should the starter itself be killed, the kernel sends each
component SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil  # type: ignore[import-untyped]

from scripts.embedded.clock import clock
from scripts.embedded.settings import REPOSITORY, EmbeddedRunError

logger = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_S = 20.0
_POLL_S = 0.1
_TELL_S = 10.0  # how long a silence may last for somebody who waits
# Found before a fork: between fork and exec nothing may be imported.
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Has the kernel send this process SIGTERM when its parent ends (Linux)."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    """Components that were started, in order; a context manager that stops them all.

    Args:
        environment: Their environment.
        logs: Folder of their logs, `<name>.log`.

    Attributes:
        expected: How many are to say that they are up; 0 where nobody counts.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self.environment = dict(environment)
        self.logs = logs
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self._graces: dict[str, float] = {}
        self._others: set[psutil.Process] = set()
        self._up: list[str] = []
        self.expected = 0

    def __enter__(self) -> Processes:
        if _PRCTL is not None:
            _PRCTL(_PR_SET_CHILD_SUBREAPER, 1)
        self._others = set(psutil.Process().children(recursive=True))
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], *, grace: float = _STOP_S) -> subprocess.Popen[bytes]:
        """Starts a component, its output going to its log.

        Args:
            name: Of the component.
            command: Its command line.
            grace: Seconds that it is given to end by itself when it is stopped.
        """
        with self.log_of(name).open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.started[name] = process
        self._graces[name] = grace
        return process

    def run(self, name: str, command: Sequence[str]) -> None:
        """Runs a command to its end.

        Raises:
            EmbeddedRunError: It failed.
        """
        self.finish(name, self.start(name, command))

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Waits for a started command to succeed.

        Raises:
            EmbeddedRunError: It failed.
        """
        waiting = self.waiting(name)
        while process.poll() is None:
            waiting()
            time.sleep(_POLL_S)
        code = process.returncode
        self.started.pop(name, None)
        if code:
            raise EmbeddedRunError(f"{name} failed with exit code {code}:\n{self.tail(name)}")

    def waiting(self, name: str) -> Callable[[], float]:
        """A clock for waiting: seconds so far; now and then it says for what, and where to look."""
        since = time.monotonic()
        told = 0.0

        def seconds() -> float:
            nonlocal told
            waited = time.monotonic() - since
            clock.show(f"waiting for {name}, {waited:.0f} s{self._how_far()}")
            if waited - told > _TELL_S:
                told = waited
                logger.info("waiting for %s, %.0f s so far (log: %s)", name, waited, self.log_of(name))
            return waited

        return seconds

    def is_up(self, name: str) -> None:
        """Tells that a component, one of `expected`, is ready."""
        self._up.append(name)
        logger.info("%s is up%s", name, self._how_far())

    def _how_far(self) -> str:
        return f" ({len(self._up)} of {self.expected} are up)" if self.expected else ""

    def log_of(self, name: str) -> Path:
        """A component's log."""
        return self.logs / f"{name}.log"

    def check(self) -> None:
        """Raises `EmbeddedRunError` when a component has ended by itself."""
        for name, process in self.started.items():
            if process.poll():
                raise EmbeddedRunError(
                    f"{name} has ended with exit code {process.returncode}:\n{self.tail(name)}"
                )

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a component's log and where it lies."""
        path = self.log_of(name)
        text = path.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([*(f"  {line}" for line in text), f"  (log: {path})"])

    def stop(self) -> None:
        """Stops every component, last started first, and whatever they have left running."""
        for name, process in reversed(list(self.started.items())):
            if process.poll() is None:
                logger.debug("stopping %s", name)
                process.terminate()
        told = time.monotonic()
        for name, process in sorted(self.started.items(), key=lambda item: self._graces[item[0]]):
            try:
                process.wait(max(0.0, told + self._graces[name] - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.debug("%s has not ended within %.0f s", name, self._graces[name])
                process.kill()
                process.wait()
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            left = [c for c in psutil.Process().children(recursive=True) if c not in self._others]
            for child in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stop(child)
            psutil.wait_procs(left, timeout=_STOP_S / 4)
        self.started.clear()


@contextlib.contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds the lock of what may run once; the kernel frees it when the holder is gone.

    Raises:
        EmbeddedRunError: Another process holds it; the message names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "a process that is just starting"
            raise EmbeddedRunError(
                f"{holder} already runs on {path.parent}: wait for it, stop it (Ctrl-C or kill), "
                "or give this one a folder and ports of its own (MTGR_VAR, AIRFLOW_PORT, SPARK_PORT)"
            ) from error
        file.truncate(0)
        file.write(f"{what} (process {os.getpid()})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def stop_on_signals() -> None:
    """Makes SIGTERM and SIGHUP end the program as Ctrl-C does: by an exception that runs every clean-up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not cut the clean-up short
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, interrupt)
