"""What a check finds, and whether something answers at an address that a setting names."""

from __future__ import annotations

import json
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_USUAL_PORTS = {
    "http": 80,
    "https": 443,
    "postgresql": 5432,
    "mysql": 3306,
    "redis": 6379,
    "amqp": 5672,
    "spark-connect": 15002,
}


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    BLOCKS = "BLOCKS"


@dataclass(frozen=True)
class Diagnosis:
    """What a check found.

    Args:
        level: How bad it is.
        subject: What was looked at.
        text: What was found.
        fix: What to do; empty when all is well.
    """

    level: Level
    subject: str
    text: str
    fix: str = ""


def check_answers(setting: str, uri: str) -> Iterator[Diagnosis]:
    """Whether something answers where a setting's URI or connection leads; nothing where it names no port."""
    try:
        address = address_of(uri)
    except ValueError:  # its message would show the value, which may hold a password
        yield Diagnosis(Level.BLOCKS, setting, "is no address that can be read", f"correct {setting}")
        return
    if address is None:
        return
    where = "{}:{}".format(*address)
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError as error:
        fix = f"start it, open the way to it, or correct {setting}"
        yield Diagnosis(Level.BLOCKS, setting, f"no answer from {where}: {error}", fix)
    else:
        yield Diagnosis(Level.OK, setting, f"{where} answers")


def address_of(uri: str) -> tuple[str, int] | None:
    """Host and port that a URI or an Airflow connection names; None where there is no port to try."""
    if uri.startswith("{"):  # Airflow's JSON form of a connection
        given = json.loads(uri)
        port = f":{given['port']}" if given.get("port") else ""
        uri = f"{given.get('conn_type')}://{given.get('host') or ''}{port}"
    # The host may be the master's URL, quoted, and name several: spark://spark%3A%2F%2Fone:7077,two:7077.
    before, _, rest = urllib.parse.unquote(uri).rpartition("://")
    if rest.startswith("local["):
        return None
    parts = urllib.parse.urlsplit(f"//{rest.split(',')[0]}")
    scheme = before.rpartition("/")[2].split("+")[-1 if before.startswith("db+") else 0]
    number = parts.port or _USUAL_PORTS.get(scheme)
    return (parts.hostname, number) if before and parts.hostname and number else None
