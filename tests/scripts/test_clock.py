"""A clock on a terminal: it never mixes with what is printed, and nothing of it reaches a file."""

import io
import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from scripts.embedded import clock as clocks
from scripts.embedded import watch
from scripts.embedded.clock import Clock
from scripts.embedded.processes import Processes


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """What a person sees: of each line what was written since it was last erased."""
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


def test_a_message_replaces_the_clock_and_the_clock_comes_back(monkeypatch):
    monkeypatch.setattr(clocks, "_EVERY_S", 0)
    terminal = Terminal()
    clock = Clock(terminal)
    handler = logging.StreamHandler(terminal)
    handler.addFilter(clock)
    clock.show("waiting for spark, 3 s")
    assert terminal.screen() == ["waiting for spark, 3 s"]
    clock.show("spark 4 s")
    assert terminal.screen() == ["spark 4 s"]
    handler.handle(logging.makeLogRecord({"msg": "spark is up"}))
    assert terminal.screen() == ["spark is up", ""]
    clock.show("mlflow 1 s")
    assert terminal.screen() == ["spark is up", "mlflow 1 s"]


def test_a_line_is_no_longer_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    Clock(terminal).show("x" * 100)
    assert terminal.screen() == ["x" * 19]


def test_a_file_gets_nothing_of_it():
    file = io.StringIO()
    clock = Clock(file)
    clock.show("waiting")
    clock.hide()
    assert file.getvalue() == ""


def test_while_steps_run_a_terminal_shows_which_and_for_how_long(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(watch, "clock", Clock(terminal))
    started = (datetime.now(UTC) - timedelta(seconds=42)).isoformat().replace("+00:00", "Z")
    ended = {"start_date": started, "end_date": started, "try_number": 1, "duration": 3.0}
    running = {**ended, "end_date": None, "duration": None}
    tasks = [
        {"task_id": "ingest", "state": "success", **ended},
        {"task_id": "build_samples", "state": "running", **running},
    ]
    api = SimpleNamespace(tasks=lambda *_: tasks)
    days = {"2026-03-01": "1", "2026-03-02": "2"}
    seen = watch.Watch(api=api, processes=None, settings=None, producers=days, since=None)
    seen._tell("2026-03-01", {"dag_id": "samples_daily", "dag_run_id": "1", "state": "running"})
    seen._pause(0.1, 1)
    assert terminal.screen()[-1] == "1 of 2 days done; 2026-03-01 build_samples 42 s"


def test_components_say_how_many_of_them_are_up(tmp_path, caplog):
    caplog.set_level("INFO")
    with Processes({}, tmp_path) as processes:
        processes.expected = 2
        processes.is_up("spark")
        processes.is_up("mlflow")
    assert [record.getMessage() for record in caplog.records] == [
        "spark is up (1 of 2 are up)",
        "mlflow is up (2 of 2 are up)",
    ]
