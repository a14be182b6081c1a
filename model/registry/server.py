"""MLflow's tracking server in the foreground: one worker, on loopback over SQLite and local files by default.

Started by `python -m model.tracking serve`; prints `ready http://<host>:<port>` on stdout once it answers
(up to 40 s on a small machine) and stops, with all its children, at SIGTERM or SIGINT. `docs/registry.md`
says how to run one for more than one host.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import FrameType

from model.registry.store import TrackingError, artifacts_root, configure, prepare, safe_uri
from spark_jobs.contract import environment, locations

logger = logging.getLogger(__name__)

_START_S = 120
_STOP_S = 20


def store_uri() -> str:
    """The database behind the server: the tracking URI, or the default one where that names the server."""
    uri = locations.tracking_uri()
    return f"sqlite:///{locations.var()}/mlflow/mlflow.db" if uri.startswith("http") else uri


def server_command(host: str, port: int, allowed_hosts: str | None, artifacts: str | None) -> list[str]:
    """Command line of the server."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri()]
    command += ["--artifacts-destination", artifacts or artifacts_root().as_uri(), "--workers", "1"]
    command += ["--host", host, "--port", str(port)]
    return [*command, "--allowed-hosts", allowed_hosts] if allowed_hosts else command


def serve(host: str, port: int, allowed_hosts: str | None = None, artifacts: str | None = None) -> int:
    """Runs the server until it is told to stop.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Host names, other than localhost and private addresses, by which it may be called.
        artifacts: Where the server keeps artifacts, e.g. `s3://bucket/mlflow`; clients reach them through
            it. Default: `$MTGR_VAR/mlflow/artifacts`.

    Returns:
        0 when it was told to stop, 1 when it ended by itself.

    Raises:
        TrackingError: The port is taken, or the database cannot be prepared.
    """
    configure()
    _require_free(host, port)
    prepare(store_uri())
    if artifacts is None:
        artifacts_root().mkdir(parents=True, exist_ok=True)
    # The job runner serves evaluations of language models: a second process pool that nothing here needs.
    variables = environment.child(
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, without=("MLFLOW_TRACKING_URI",)
    )
    server = subprocess.Popen(
        server_command(host, port, allowed_hosts, artifacts),
        env=variables,
        stdout=sys.stderr,
        start_new_session=True,
    )
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        _signal_group(server, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        if _wait_until_ready(server, f"http://{host}:{port}", stopped):
            logger.info("MLflow serves %s at http://%s:%d", safe_uri(store_uri()), host, port)
        while server.poll() is None and not stopped:
            time.sleep(0.2)
    finally:
        _end(server)
    return 0 if stopped else 1


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TrackingError(
                f"port {port} of {host} is taken ({error}); choose another: --port"
            ) from error


def _wait_until_ready(server: subprocess.Popen[bytes], address: str, stopped: list[int]) -> bool:
    """Waits for the server's answer, then says where on stdout."""
    give_up = time.monotonic() + _START_S
    while server.poll() is None and not stopped:
        with contextlib.suppress(OSError, urllib.error.URLError):
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                answer.read()
            sys.stdout.write(f"ready {address}\n")
            sys.stdout.flush()
            return True
        if time.monotonic() > give_up:
            raise TrackingError(f"the MLflow server at {address} did not answer within {_START_S} s")
        time.sleep(0.3)
    return False


def _signal_group(server: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, number)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and all that it started."""
    _signal_group(server, signal.SIGTERM)
    try:
        server.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        logger.warning("the MLflow server did not stop within %d s and is killed", _STOP_S)
    _signal_group(server, signal.SIGKILL)
    server.wait()
