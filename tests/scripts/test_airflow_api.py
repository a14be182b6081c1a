"""A call of Airflow's API that gets no answer is tried again, and starts nothing twice."""

import http.server
import json
import threading

import pytest

from scripts.embedded import airflow_api
from scripts.embedded.airflow_api import AirflowApi
from scripts.embedded.settings import EmbeddedRunError


@pytest.fixture
def airflow():
    """A server that makes runs as Airflow does, and gives no answer to the first of each."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/auth/token":
                return self._answer(201, {"access_token": "token"})
            if self.path.endswith("/refused/dagRuns"):
                return self._answer(409, {"detail": "exists"})
            if body["dag_run_id"] in runs:
                return self._answer(409, {"detail": "exists"})
            runs.append(body["dag_run_id"])
            return self.connection.close()

        def _answer(self, code, body):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments):
            pass

    runs = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield AirflowApi(f"http://127.0.0.1:{server.server_port}", "admin", "secret"), runs
        server.shutdown()


def test_a_run_whose_answer_is_lost_is_started_once(airflow):
    api, runs = airflow
    assert [api.trigger("samples_daily", "2026-03-01")] == runs


def test_a_conflict_at_the_first_try_is_an_error(airflow):
    api, _ = airflow
    with pytest.raises(EmbeddedRunError, match="refused POST /dags/refused/dagRuns: 409"):
        api.trigger("refused", "2026-03-01")


def test_an_airflow_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(airflow_api, "RETRIED_S", 0.0)
    with pytest.raises(EmbeddedRunError, match=r"Airflow at http://127\.0\.0\.1:1 does not answer"):
        AirflowApi("http://127.0.0.1:1", "admin", "secret").call("GET", "/dags")
