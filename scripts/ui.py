"""Opens what there is to see, on loopback, until Ctrl-C: `make ui`.

Starts Airflow with its scheduler (DAGs can be triggered, and run daily on what is delivered), MLflow and the
data docs, and prints where they are and the login.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Sequence

from scripts.embedded import secrets_store
from scripts.embedded.clock import print_line
from scripts.embedded.components import embedded
from scripts.embedded.processes import stop_on_signals
from scripts.embedded.settings import (
    EmbeddedSettings,
    settings_from_environment,
)
from spark_jobs.contract import command

logger = logging.getLogger(__name__)


def addresses(settings: EmbeddedSettings) -> str:
    """Where the user interfaces are, and the login, as lines for people."""
    return (
        f"Airflow    {settings.airflow_url}  user {secrets_store.USER}, "
        f"password {secrets_store.password(settings.home)}\n"
        f"MLflow     http://127.0.0.1:{settings.mlflow_port}\n"
        f"data docs  http://127.0.0.1:{settings.docs_port}\n"
        "Ctrl-C stops them."
    )


def _run(arguments: argparse.Namespace) -> None:
    settings = settings_from_environment()
    with (
        contextlib.suppress(KeyboardInterrupt),  # how it is meant to end
        embedded(settings, "make ui", ui=True) as (processes, _),
    ):
        print_line(addresses(settings))
        while True:
            processes.check()
            time.sleep(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until Ctrl-C or SIGTERM; settings are variables, see `command.run` for the exit codes."""
    stop_on_signals()
    return command.run(command.parser("scripts.ui", __doc__), _run, argv, for_people=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
