"""What every command needs of the machine: a Java for Spark, a user with a name, a way to loopback.

    python -m spark_jobs.contract.machine       the version of the Java that Spark will run on

Setup, doctor and the Spark session find Java here and nowhere else.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spark_jobs.contract import environment
from spark_jobs.contract.command import CommandError

VERSIONS = ("17", "21")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A line of its own: what JAVA_TOOL_OPTIONS, _JAVA_OPTIONS and JDK_JAVA_OPTIONS announce stands before it.
_VERSION = re.compile(r'^\w+ version "(?:1\.)?(\d+)', re.MULTILINE)
_INSTALL = "install Java 17 or 21 (Debian: apt-get install openjdk-17-jre-headless), or set JAVA_HOME to one"


class MachineError(CommandError):
    """The machine lacks something; the message names it and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Java:
    """The Java that Spark runs on.

    Args:
        path: Its program.
        version: 17 or 21.
    """

    path: str
    version: str


def java() -> Java:
    """Finds Java as Spark's own scripts do: `JAVA_HOME` where it is set, else the one on the path.

    Raises:
        MachineError: There is none, it does not run, or Spark does not run on its version.
    """
    home = environment.java_home()
    path = str(Path(home, "bin", "java")) if home else shutil.which("java")
    where = f"JAVA_HOME={home}" if home else "the path"
    if path is None or not Path(path).exists():
        raise MachineError(f"Spark needs Java 17 or 21, found none ({where}): {_INSTALL}")
    try:
        done = subprocess.run(
            [path, "-version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineError(f"Spark needs Java 17 or 21, {path} does not run ({error}): {_INSTALL}") from error
    match = _VERSION.search(done.stdout)
    if done.returncode or match is None:
        said = " ".join(done.stdout.split())[:300]
        options = [name for name in environment.JAVA_OPTIONS if environment.text(name)]
        fix = f"correct {', '.join(options)}" if options else _INSTALL
        raise MachineError(f"Spark needs Java 17 or 21, {path} does not run ({said}): {fix}")
    if match.group(1) not in VERSIONS:
        raise MachineError(
            f"Spark needs Java 17 or 21, found {match.group(1)} at {path} ({where}): {_INSTALL}"
        )
    return Java(path=path, version=match.group(1))


def require_user() -> None:
    """Checks that this process's user has a name: Spark's login asks the system for it, and nothing else.

    Raises:
        MachineError: It has none, as in a container that runs as a number.
    """
    uid = os.getuid()
    try:
        pwd.getpwuid(uid)
    except KeyError as error:
        raise MachineError(
            f"user id {uid} has no entry in /etc/passwd, and Spark cannot log in without a name: add one "
            f"(echo 'mtgr:x:{uid}:{os.getgid()}::/tmp:/bin/sh' >> /etc/passwd when the image is built or "
            "starts), or run as a user that the image knows"
        ) from error


def spare_loopback(variables: Mapping[str, str]) -> dict[str, str]:
    """What to set so that no program sends its own machine's addresses through a proxy.

    `http_proxy` and the like without `no_proxy` send them, too, to a machine where nobody listens.

    Args:
        variables: The environment.

    Returns:
        `no_proxy` in both spellings, with what it had; nothing where it spares every host.
    """
    given = [variables.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = list(dict.fromkeys(host.strip() for one in given for host in one.split(",") if host.strip()))
    if "*" in hosts:
        return {"no_proxy": "*", "NO_PROXY": "*"}
    value = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
    return {"no_proxy": value, "NO_PROXY": value}


def main() -> int:
    """Prints the version of Java; exit code 1 and the reason where there is none that Spark runs on."""
    try:
        sys.stdout.write(f"{java().version}\n")
    except MachineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
