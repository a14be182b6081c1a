"""What `make ui` prints leads to the runs, where there are some."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.error import HTTPError

import pytest

from model.registry import pages
from scripts import ui
from scripts.embedded.settings import EmbeddedSettings, settings_from_environment


class Answers(BaseHTTPRequestHandler):
    """MLflow's answer to who the experiment is."""

    code = 200

    def do_GET(self) -> None:
        assert self.path == "/api/2.0/mlflow/experiments/get-by-name?experiment_name=mtgr-foodlog"
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(json.dumps({"experiment": {"experiment_id": "7"}}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedSettings]:
    monkeypatch.delenv("DATASET", raising=False)
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield dataclasses.replace(settings_from_environment(), mlflow_port=server.server_port)
        server.shutdown()


def test_the_address_of_mlflow_is_that_of_the_runs(settings: EmbeddedSettings) -> None:
    assert ui.runs_address(settings) == f"http://127.0.0.1:{settings.mlflow_port}/{pages.runs_link('7')}"


def test_before_there_is_an_experiment_it_is_mlflows(
    settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answers, "code", 404)
    assert ui.runs_address(settings) == f"http://127.0.0.1:{settings.mlflow_port}"
    monkeypatch.setattr(Answers, "code", 500)
    with pytest.raises(HTTPError):
        ui.runs_address(settings)
