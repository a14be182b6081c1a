"""Opens what there is to see, on loopback, until Ctrl-C: `make ui`.

Starts Airflow with its scheduler (DAGs can be triggered, and run daily on what is delivered), MLflow and the
data docs, and prints where they are and the login.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http import HTTPStatus

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


# A link without the first opens in what the browser chose last; the second is of model/registry/pages.py.
_VIEW = "workflowType=machine_learning&viewStateShareKey=gauc"


def runs_address(settings: EmbeddedSettings) -> str:
    """Address of the dataset's runs in MLflow; of MLflow alone before there is one."""
    root = f"http://127.0.0.1:{settings.mlflow_port}"
    name = urllib.parse.urlencode({"experiment_name": f"mtgr-{settings.dataset}"})
    try:
        with urllib.request.urlopen(
            f"{root}/api/2.0/mlflow/experiments/get-by-name?{name}", timeout=30
        ) as answer:
            experiment = json.load(answer)["experiment"]["experiment_id"]
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        return root
    return f"{root}/#/experiments/{experiment}/runs?{_VIEW}"


def addresses(settings: EmbeddedSettings) -> str:
    """Where the user interfaces are, and the login, as lines for people."""
    return (
        f"Airflow    {settings.airflow_url}  user {secrets_store.USER}, "
        f"password {secrets_store.password(settings.home)}\n"
        f"MLflow     {runs_address(settings)}\n"
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
