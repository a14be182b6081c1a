"""A client of Airflow's REST API, as small as the embedded run needs: the CLI would cost 3 s a call."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from scripts.embedded.settings import EmbeddedRunError

_PAGE = 100  # the most runs that an answer holds
RETRIED_S = 120.0  # how long a call that gets no answer is tried again: SQLite or the machine may be busy
_ANSWER_S = 30.0
# Airflow is on loopback: whatever proxy the environment names, it does not lead there.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AirflowApi:
    """Airflow's REST API with the login of a user.

    Args:
        url: Address of the API server.
        user: User name.
        password: Password.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self._login = url, {"username": user, "password": password}
        self._token = ""

    def is_healthy(self, *components: str) -> bool:
        """Whether the API server answers and each of `components` (scheduler, ...) has a fresh heartbeat."""
        try:
            health = self._send("GET", "/api/v2/monitor/health", None, timeout=5)
        except OSError:
            return False
        return all((health.get(name) or {}).get("status") == "healthy" for name in components)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        """Calls `/api/v2<path>` and returns the answer; None when an earlier try has made what is to be made.

        Raises:
            EmbeddedRunError: It was refused, or Airflow did not answer.
        """
        if query:
            path += "?" + urllib.parse.urlencode(query, doseq=True)
        end = time.monotonic() + RETRIED_S
        unanswered = False
        while True:
            try:
                self._token = self._token or self._send("POST", "/auth/token", self._login)["access_token"]
                return self._send(method, f"/api/v2{path}", body)
            except urllib.error.HTTPError as error:
                detail = error.read().decode(errors="replace")[:500]
                if error.code == 409 and unanswered:
                    return None
                if error.code == 401:
                    self._token = ""
                if error.code not in (401, 500, 503) or time.monotonic() > end:
                    raise EmbeddedRunError(
                        f"Airflow refused {method} {path}: {error.code} {detail}"
                    ) from error
            except (OSError, http.client.HTTPException) as error:
                unanswered = True
                if time.monotonic() > end:
                    raise EmbeddedRunError(f"Airflow at {self.url} does not answer: {error}") from error
            time.sleep(0.5)

    def _send(self, method: str, path: str, body: dict[str, Any] | None, timeout: float = _ANSWER_S) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with _DIRECT.open(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def has_dag(self, dag_id: str) -> bool:
        """Whether Airflow has read the DAG."""
        dags = self.call("GET", "/dags", dag_id_pattern=dag_id)["dags"]
        return any(dag["dag_id"] == dag_id for dag in dags)

    def import_errors(self) -> list[str]:
        """DAG files that cannot be read, with the last line of the error."""
        errors = self.call("GET", "/importErrors")["import_errors"]
        return [f"{e['filename']}: {e['stack_trace'].strip().splitlines()[-1]}" for e in errors]

    def make_pool(self, name: str, slots: int, description: str) -> None:
        """Makes a pool, unless it exists: then its size is the operator's."""
        if not self.call("GET", "/pools", pool_name_pattern=name)["pools"]:
            body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
            self.call("POST", "/pools", body)

    def trigger(self, dag_id: str, day: str) -> str:
        """Starts a run of a day and returns its id, chosen here: a call tried again starts one run."""
        run_id = f"manual__{day}__{datetime.now(UTC).isoformat()}"
        body = {"dag_run_id": run_id, "logical_date": None, "partition_key": day}
        self.call("POST", f"/dags/{dag_id}/dagRuns", body)
        return run_id

    def runs(self, dag_id: str, since: datetime) -> list[dict[str, Any]]:
        """Runs that were queued at `since` or later, oldest first."""
        runs: list[dict[str, Any]] = []
        while True:
            query: dict[str, Any] = {"limit": _PAGE, "offset": len(runs), "order_by": "-id"}
            page = self.call("GET", f"/dags/{dag_id}/dagRuns", **query)["dag_runs"]
            recent = [run for run in page if datetime.fromisoformat(run["queued_at"]) >= since]
            runs += recent
            if len(recent) < _PAGE:
                return runs[::-1]

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        """One run."""
        path = f"/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id, safe='')}"
        answer: dict[str, Any] = self.call("GET", path)
        return answer

    def end_unfinished(self, dag_ids: Sequence[str]) -> list[tuple[str, str]]:
        """Cancels unfinished backfills and fails unfinished runs; returns the (DAG, run id) of the runs."""
        ended = []
        for dag_id in dag_ids:
            for backfill in self.call("GET", "/backfills", dag_id=dag_id)["backfills"]:
                if backfill["completed_at"] is None:
                    self.call("PUT", f"/backfills/{backfill['id']}/cancel")
            for state in ("queued", "running"):
                path = f"/dags/{dag_id}/dagRuns"
                for run in self.call("GET", path, state=state, limit=100)["dag_runs"]:
                    run_id = urllib.parse.quote(run["dag_run_id"], safe="")
                    self.call("PATCH", f"{path}/{run_id}", {"state": "failed"})
                    ended.append((dag_id, run["dag_run_id"]))
        return ended

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Task instances of a run."""
        path = f"/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id, safe='')}/taskInstances"
        instances: list[dict[str, Any]] = self.call("GET", path)["task_instances"]
        return instances

    def log(self, dag_id: str, run_id: str, task_id: str, attempt: int) -> list[str]:
        """Lines of a task's log."""
        run_id = urllib.parse.quote(run_id, safe="")
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        content = self.call("GET", path, full_content="true")["content"]
        return [line for entry in content for line in _lines(entry)]


def _lines(entry: Any) -> list[str]:
    """Lines of a log entry: what happened, and the exception that it reports."""
    if not isinstance(entry, dict):
        return [str(entry)]
    errors = entry.get("error_detail") or []
    return [str(entry.get("event", "")), *(f"{error['exc_type']}: {error['exc_value']}" for error in errors)]
