"""What tells an operator that a run failed, a step is being retried, or a day is late.

Each alert is logged, appended to `$MTGR_VAR/alerts.jsonl` and, when `MTGR_ALERT_WEBHOOK` is set, posted there
as `{"text": ...}` (the form that Slack, Teams and Mattermost take). What is of one try is told once: Airflow
calls back several times for a task whose worker has died. Standard library only.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import urllib.request
from datetime import UTC, datetime
from typing import Any

from dags.settings import alert_webhook
from spark_jobs.contract import locations

logger = logging.getLogger(__name__)


def send(kind: str, text: str, of: str = "") -> None:
    """Logs an alert, keeps it, and posts it when there is a webhook.

    Args:
        kind: `failed`, `retried` or `late`.
        text: One line for people.
        of: What alerts of this kind once, over all hosts; empty for what may come again.
    """
    logger.warning("alert: %s: %s", kind, text)
    path = locations.var() / "alerts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        # Looked for as text: a line that a crash has cut would not parse, and tells nothing.
        told = json.dumps({"kind": kind, "of": of}).strip("{}")
        if of and any(told in line for line in file):
            logger.info("%s was told before", of)
            return
        alert = {"time": datetime.now(UTC).isoformat(), "kind": kind, "of": of, "text": text}
        file.write(json.dumps(alert) + "\n")
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
    text = f"{run.dag_id}.{task.task_id} of {run.partition_key}: {_why(context)}"
    send("failed", text, _try(run, task))


def task_retried(context: Any) -> None:
    """Callback of a step that failed and will be tried again."""
    run, task = context["dag_run"], context["ti"]
    text = f"{run.dag_id}.{task.task_id} of {run.partition_key}, try {task.try_number}: {_why(context)}"
    send("retried", text, _try(run, task))


def _why(context: Any) -> str:
    return str(
        context.get("exception") or "it ended without saying why, as when its worker dies; see its log"
    )


def _try(run: Any, task: Any) -> str:
    return f"{run.dag_id}.{task.task_id} {run.run_id} try {task.try_number}"


async def deadline_missed(context: Any = None, **kwargs: Any) -> None:
    """Callback of a run that is not done by its deadline."""
    run = (context or {}).get("dag_run") or {}
    name = f"{run.get('dag_id')} {run.get('dag_run_id')}" if isinstance(run, dict) else str(run)
    await asyncio.to_thread(send, "late", f"{name}: not done after {kwargs.get('hours')} hours")
