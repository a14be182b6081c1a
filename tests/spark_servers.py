"""Spark servers that tests start: Spark Connect as the embedded run has it, and a standalone cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def spark_connect(log: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """A Spark Connect server; yields its address. It has to stop when it is told to."""
    port = free_port()
    command = [sys.executable, "-m", "spark_jobs.session", "serve", "--port", str(port), *arguments]
    with log.open("w") as stderr:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if line != f"ready sc://127.0.0.1:{port}\n":
            raise RuntimeError(f"the Spark Connect server did not start: {log.read_text()[-2000:]}")
        yield f"sc://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
    assert code == 0, f"the Spark Connect server ended with {code}"


@contextlib.contextmanager
def standalone_cluster(work: Path) -> Iterator[str]:
    """A standalone master with two workers of one core, from the pip package; yields the master's URL."""
    import pyspark

    home, port = Path(pyspark.__file__).parent, free_port()
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_WORKER_DIR": str(work),
    }
    url, deploy = f"spark://127.0.0.1:{port}", "org.apache.spark.deploy"
    here = ["--host", "127.0.0.1", "--webui-port", "0"]
    worker = [f"{deploy}.worker.Worker", *here, "--cores", "1", "--memory", "700m", url]
    commands = [[f"{deploy}.master.Master", *here, "--port", str(port)], worker, worker]
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((work / f"{number}.log").open("w"))
            process = subprocess.Popen(
                [str(home / "bin" / "spark-class"), *command], env=environment, stdout=log, stderr=log
            )
            stack.callback(_stop, process)
            if number == 0:
                wait_for_port(port, process)
        yield url


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    process.wait(timeout=60)


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Waits until something takes connections on a loopback port."""
    for _ in range(600):
        assert process.poll() is None, "it has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing at port {port}")
