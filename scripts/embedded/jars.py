"""Fetches Delta's jars from Maven Central, once: `python -m scripts.embedded.jars`.

Spark resolves its packages by Ivy into `~/.ivy2*/jars`; from then on `spark_jobs.lake.session` takes the jars
from there, which needs no network and saves seconds a process. `SPARK_JARS` names other jars: nothing is
fetched.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from spark_jobs.lake.session import SparkUnavailableError, delta_jars, require_machine, spark_home

logger = logging.getLogger(__name__)


def fetch() -> bool:
    """Fetches the jars if they are not here; returns whether it had to.

    Raises:
        SparkUnavailableError: There is no Java, or the jars cannot be fetched.
    """
    packages = delta_jars().get("spark.jars.packages")
    if packages is None:
        return False
    require_machine()
    logger.info("fetching %s from Maven Central", packages)
    home = spark_home()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as nothing:
        nothing.write("# resolves the packages and ends\n")
        nothing.flush()
        command = [
            str(home / "bin" / "spark-submit"),
            "--packages",
            packages,
            "--master",
            "local[1]",
            nothing.name,
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    if done.returncode or "spark.jars.packages" in delta_jars():
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise SparkUnavailableError(
            f"{packages} could not be fetched from Maven Central: give this machine access to it, "
            f"or set SPARK_JARS to the jars\n{tail}"
        )
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Exit code 0 the jars are here, 1 they are not."""
    logging.basicConfig(level=logging.INFO, format="setup: %(message)s", stream=sys.stderr)
    try:
        fetch()
    except SparkUnavailableError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
