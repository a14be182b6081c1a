"""Components leave nothing behind, run once at a time, and secrets are their owner's alone."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.embedded import processes as processes_module
from scripts.embedded import secrets_store
from scripts.embedded.processes import Processes, exclusive
from scripts.embedded.settings import EmbeddedRunError

ROOT = Path(__file__).resolve().parents[2]
# A component whose child has a session of its own and ignores SIGTERM: what a step of Airflow can look like.
STUBBORN = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
open(sys.argv[1], "w").write(str(process.pid))
time.sleep(60)
"""
STARTER = """
import sys
from pathlib import Path
from scripts.embedded.processes import Processes, stop_on_signals
stop_on_signals()
folder = Path(sys.argv[1])
with Processes(dict(__import__("os").environ), folder) as processes:
    processes.start("stubborn", [sys.executable, "-c", (folder / "code").read_text(), str(folder / "pid")])
    while True:
        __import__("time").sleep(0.1)
"""


def _read_when_there(path: Path) -> int:
    for _ in range(200):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_starter_leaves_no_process(tmp_path, number):
    (tmp_path / "code").write_text(STUBBORN)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    grandchild = _read_when_there(tmp_path / "pid")
    starter.send_signal(number)
    starter.wait(timeout=60)
    assert not psutil.pid_exists(grandchild)


def test_a_command_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    with Processes(dict(os.environ), tmp_path) as processes:
        with pytest.raises(
            EmbeddedRunError, match=r"(?s)database failed with exit code 3:.*no such table.*log: "
        ):
            processes.run("database", ["sh", "-c", "echo no such table; exit 3"])


def test_a_component_that_ends_by_itself_is_noticed(tmp_path):
    with Processes(dict(os.environ), tmp_path) as processes:
        processes.start("scheduler", ["sh", "-c", "exit 4"]).wait()
        with pytest.raises(EmbeddedRunError, match="scheduler has ended with exit code 4"):
            processes.check()


def test_a_second_run_is_refused_by_name(tmp_path):
    lock = tmp_path / "running"
    with exclusive(lock, "make run"):
        message = rf"make run \(process {os.getpid()}\) already runs .*MTGR_VAR, AIRFLOW_PORT"
        with pytest.raises(EmbeddedRunError, match=message), exclusive(lock, "make backfill"):
            pass
    with exclusive(lock, "make backfill"):
        pass


def test_secrets_are_made_once_and_readable_by_their_owner_alone(tmp_path):
    assert sorted(secrets_store.generate(tmp_path)) == [
        "api_secret_key",
        "fernet_key",
        "jwt_secret",
        "passwords.json",
    ]
    before = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert secrets_store.generate(tmp_path) == []
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == before
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert len(set(before.values())) == 4
    assert secrets_store.problems(tmp_path) == []


def test_open_secrets_are_a_problem(tmp_path):
    secrets_store.generate(tmp_path)
    key = tmp_path / "secrets" / "jwt_secret"
    key.chmod(0o644)
    assert secrets_store.problems(tmp_path) == [f"{key} is readable by other users: chmod 600 {key}"]


# Ends a while after it was told to, and says so.
SLOW = """
import signal, sys, time
from pathlib import Path
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
place = Path(sys.argv[1])
place.write_text("0")
while not told:
    time.sleep(0.02)
time.sleep(2)
place.write_text("1")
"""


@pytest.mark.parametrize(("given", "ended"), [({}, 1), ({"grace": 0.1}, 0)])
def test_a_component_has_its_own_grace(tmp_path, given, ended):
    place = tmp_path / "ended"
    with Processes(dict(os.environ), tmp_path) as processes:
        slow = processes.start("slow", [sys.executable, "-c", SLOW, str(place)], **given)
        assert _read_when_there(place) == 0
    assert int(place.read_text()) == ended
    assert slow.returncode == (0 if ended else -signal.SIGKILL)


def test_what_ran_before_the_components_is_left_alone(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with Processes(dict(os.environ), tmp_path) as processes:
            processes.start("idle", [sys.executable, "-c", "import time; time.sleep(60)"])
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_who_waits_is_told_for_what_and_where_to_look(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(processes_module, "_TELL_S", 0.2)
    caplog.set_level("INFO")
    with Processes(dict(os.environ), tmp_path) as processes:
        processes.run("airflow-database", [sys.executable, "-c", "import time; time.sleep(1)"])
    told = [record.getMessage() for record in caplog.records]
    assert len(told) >= 2
    assert all(line.startswith("waiting for airflow-database, ") for line in told)
    assert all(line.endswith(f"s so far (log: {tmp_path}/airflow-database.log)") for line in told)
    caplog.clear()
    with Processes(dict(os.environ), tmp_path) as processes:
        processes.run("quick", ["true"])
    assert caplog.records == []
