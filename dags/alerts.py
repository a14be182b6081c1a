"""What tells an operator that a run failed, a step is being retried, or a day is late.

Each alert is logged, appended to `$MTGR_VAR/alerts.jsonl` and, when `MTGR_ALERT_WEBHOOK` is set, posted there
as `{"text": ...}` (the form that Slack, Teams and Mattermost take). Standard library only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.request
from datetime import UTC, datetime
from typing import Any

from dags.settings import alert_webhook
from spark_jobs.contract import locations

logger = logging.getLogger(__name__)


def send(kind: str, text: str) -> None:
    """Logs an alert, keeps it, and posts it when there is a webhook.

    Args:
        kind: `failed`, `retried` or `late`.
        text: One line for people.
    """
    logger.warning("alert: %s: %s", kind, text)
    path = locations.var() / "alerts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": datetime.now(UTC).isoformat(), "kind": kind, "text": text}) + "\n")
    webhook = alert_webhook()
    if webhook:
        body = json.dumps({"text": f"mtgr {kind}: {text}"}).encode()
        request = urllib.request.Request(webhook, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10):
            pass


def run_failed(context: Any) -> None:
    """Callback of a DAG run that failed."""
    run = context["dag_run"]
    send("failed", f"{run.dag_id} of {run.partition_key or 'no day'} ({run.run_id}): {context.get('reason')}")


def task_failed(context: Any) -> None:
    """Callback of a step that failed and will not be tried again: says why, as the step does."""
    run, task = context["dag_run"], context["ti"]
    send("failed", f"{run.dag_id}.{task.task_id} of {run.partition_key}: {context.get('exception')}")


def task_retried(context: Any) -> None:
    """Callback of a step that failed and will be tried again."""
    run, task = context["dag_run"], context["ti"]
    error = context.get("exception")
    send("retried", f"{run.dag_id}.{task.task_id} of {run.partition_key}, try {task.try_number}: {error}")


async def deadline_missed(context: Any = None, **kwargs: Any) -> None:
    """Callback of a run that is not done by its deadline."""
    run = (context or {}).get("dag_run") or {}
    name = f"{run.get('dag_id')} {run.get('dag_run_id')}" if isinstance(run, dict) else str(run)
    await asyncio.to_thread(send, "late", f"{name}: not done after {kwargs.get('hours')} hours")
