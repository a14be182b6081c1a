"""The loopback ports of the embedded run, and whether they are free. Standard library only."""

from __future__ import annotations

import fcntl
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.embedded.settings import EmbeddedSettings


def needed(settings: EmbeddedSettings, *, ui: bool) -> dict[str, int]:
    """The ports that a run, or with `ui` the user interfaces, will listen on, by their setting's name."""
    ports = {"AIRFLOW_PORT": settings.airflow_port}
    if settings.has_own_spark:
        ports["SPARK_PORT"] = settings.spark_port
    if ui:
        ports |= {"MLFLOW_PORT": settings.mlflow_port, "DOCS_PORT": settings.docs_port}
    return ports


def is_free(port: int) -> bool:
    """Whether this process could listen on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether something takes connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_running(settings: EmbeddedSettings) -> bool:
    """Whether a run of this folder holds its lock."""
    try:
        with (settings.home / "running").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
