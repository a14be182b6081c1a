"""Settings of the DAGs: environment variables of Airflow's processes, read when a DAG file is parsed.

| variable | what | default |
|---|---|---|
| `MTGR_DATASET` | the dataset of this deployment | `foodlog` |
| `MTGR_CHALLENGERS` | presets that are trained every day beside the champion's own | `tiny user_tower` |
| `MTGR_PRESET` | the same for one preset | |
| `MTGR_SCHEDULE` | cron of `samples_daily`, UTC | 30 minutes after the day's attribution window |
| `MTGR_SCHEDULED` | 0: no scheduled runs, only triggered ones and backfills | 1 |
| `MTGR_PYTHON` | the interpreter that runs steps | the one that parses this file |
| `MTGR_LAUNCHER` | the command that is given `-m <step> ...` | `MTGR_PYTHON` |
| `MTGR_TRAIN_LAUNCHER` | the same for `model.train`, e.g. `torchrun --nproc-per-node 8` | `MTGR_LAUNCHER` |
| `MTGR_TRAINING_QUEUE` | Celery's queue of tasks that train or score | Airflow's |
| `MTGR_RETRIES`, `MTGR_RETRY_SECONDS` | retries of a step, and the pause before the first | 2, 60 |
| `MTGR_DOCS_URL` | where people open the data docs: tasks link there | none |
| `MTGR_MLFLOW_URL` | the same for MLflow | the server's, where `MLFLOW_TRACKING_URI` is one |
| `MTGR_KEEP` | how many of the newest versions and runs `maintenance_weekly` keeps | 30 |
| `MTGR_TABLES_BUDGET` | bytes that tables may hold after it | 0: any |
| `MTGR_RUNS_BUDGET` | bytes that runs and versions may hold after it | 0: any |
| `MTGR_KEEP_LOG_DAYS` | days that it keeps logs | 30 |
| `MTGR_ALERT_WEBHOOK` | address that alerts are posted to | none |
"""

from __future__ import annotations

import re
import sys
from datetime import timedelta
from urllib.parse import urlsplit

from spark_jobs.contract.command import UsageError
from spark_jobs.contract.environment import flag, real, text, whole


def presets(challengers: str, preset: str) -> tuple[str, ...]:
    """The presets of a day, each once.

    Raises:
        UsageError: Both settings are given, or a word is no name.
    """
    if challengers and preset:
        raise UsageError(f"MTGR_CHALLENGERS={challengers} and MTGR_PRESET={preset}: give one of the two")
    names = tuple(dict.fromkeys((challengers or preset or "tiny user_tower").split()))
    for name in names:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise UsageError(
                f"MTGR_CHALLENGERS: {name!r} is no preset: lower case letters, digits, underscores"
            )
    return names


def address_of(tracking_uri: str) -> str:
    """The address of MLflow's pages where a server keeps it; without a login that its URI may hold."""
    parts = urlsplit(tracking_uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.scheme in ("http", "https") else ""


DATASET = text("MTGR_DATASET", "foodlog")
CHALLENGERS = presets(text("MTGR_CHALLENGERS"), text("MTGR_PRESET"))
SCHEDULE = text("MTGR_SCHEDULE")
IS_SCHEDULED = flag("MTGR_SCHEDULED", True)
PYTHON = text("MTGR_PYTHON", sys.executable)
LAUNCHER = text("MTGR_LAUNCHER", PYTHON)
TRAIN_LAUNCHER = text("MTGR_TRAIN_LAUNCHER", LAUNCHER)
TRAINING_QUEUE = text("MTGR_TRAINING_QUEUE")
RETRIES = whole("MTGR_RETRIES", 2, high=100)
RETRY_DELAY = timedelta(seconds=real("MTGR_RETRY_SECONDS", 60.0, high=86_400.0))
KEEP = whole("MTGR_KEEP", 30, low=1)
TABLES_BUDGET, RUNS_BUDGET = (whole(f"MTGR_{what}_BUDGET", 0, high=2**60) for what in ("TABLES", "RUNS"))
KEEP_LOG_DAYS = whole("MTGR_KEEP_LOG_DAYS", 30, low=1)
DOCS_URL = text("MTGR_DOCS_URL").rstrip("/")
MLFLOW_URL = text("MTGR_MLFLOW_URL", address_of(text("MLFLOW_TRACKING_URI"))).rstrip("/")


def alert_webhook() -> str:
    """Address that alerts are posted to; empty for none. Read when an alert is sent: it may hold a secret."""
    return text("MTGR_ALERT_WEBHOOK")
