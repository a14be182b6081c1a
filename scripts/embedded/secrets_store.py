"""Airflow's secrets for the embedded run: generated once, readable by their owner alone.

They lie in `$AIRFLOW_HOME/secrets`; `airflow.cfg` reads them from there. Nothing prints them but `make ui`,
which shows the login to the person who runs it.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

PASSWORDS = "passwords.json"
USER = "admin"


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode("ascii")


def _passwords() -> str:
    return json.dumps({USER: secrets.token_urlsafe(18)})


_MAKERS: dict[str, Callable[[], str]] = {
    "jwt_secret": lambda: secrets.token_urlsafe(48),
    "api_secret_key": lambda: secrets.token_urlsafe(48),
    "fernet_key": _fernet_key,
    PASSWORDS: _passwords,
}


def folder(home: Path) -> Path:
    """Folder of the secrets of an Airflow home."""
    return home / "secrets"


def generate(home: Path) -> list[str]:
    """Makes the secrets that are missing; what exists stays as it is.

    Returns:
        Names of those that were made.
    """
    folder(home).mkdir(parents=True, exist_ok=True, mode=0o700)
    folder(home).chmod(0o700)
    made = []
    for name, maker in _MAKERS.items():
        path = folder(home) / name
        if path.exists() and path.stat().st_size:
            continue
        partial = path.with_name(f".{name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(maker())
        partial.replace(path)
        made.append(name)
    return made


def password(home: Path) -> str:
    """Password of the user `admin`."""
    passwords: dict[str, str] = json.loads((folder(home) / PASSWORDS).read_text())
    return passwords[USER]


def problems(home: Path) -> list[str]:
    """What is wrong with the secrets, each with its remedy; empty when nothing is, or none exist yet."""
    wrong = []
    if not folder(home).exists():
        return []
    if stat.S_IMODE(folder(home).stat().st_mode) & 0o077:
        wrong.append(f"{folder(home)} is open to other users: chmod 700 {folder(home)}")
    for name in _MAKERS:
        path = folder(home) / name
        if not path.exists():
            wrong.append(f"{path} is missing: the next `make run` or `make ui` makes it")
        elif stat.S_IMODE(path.stat().st_mode) & 0o077:
            wrong.append(f"{path} is readable by other users: chmod 600 {path}")
    return wrong
