"""Java, users, proxies, folders and numbers: what a machine or a person sets is used, or named at once."""

import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from model.config.names import plain_presets
from model.config.presets import PRESETS
from scripts import doctor
from scripts.embedded.airflow_api import AirflowApi
from spark_jobs.contract import locations, machine
from spark_jobs.contract.command import UsageError
from spark_jobs.lake import session
from tests.spark_servers import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS"])
def test_what_java_announces_before_its_version_is_no_version(monkeypatch, name):
    plain = machine.java()
    monkeypatch.setenv(name, '-Dgreeting=version"11" -Dversion=1')
    assert machine.java() == plain
    (finding,) = doctor.check_java()
    assert finding.level is doctor.Level.OK
    command = [
        shutil.which("bash"),
        "-c",
        'source <(sed -n "/^find_java/p" scripts/setup.sh); find_java "$0"',
    ]
    done = subprocess.run([*command, sys.executable], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{plain.version}\n"


def test_a_java_that_does_not_run_is_named_with_the_options_it_was_given(monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:NoSuchOption")
    with pytest.raises(machine.MachineError, match=r"NoSuchOption.*: correct JAVA_TOOL_OPTIONS$"):
        machine.java()


def _java_of(folder: Path, text: str, code: int = 0) -> str:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit {code}\n")
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('openjdk version "11.0.2" 2019-01-15', "found 11 at .*JAVA_HOME="),
        ('java version "1.8.0_402"', "found 8 at"),
        ('openjdk version "25" 2025-09-16', "found 25 at"),
        ("No Java runtime present, requesting install.", "does not run .No Java runtime present"),
    ],
)
def test_another_java_is_named(monkeypatch, tmp_path, text, message):
    monkeypatch.setenv("JAVA_HOME", _java_of(tmp_path / "a java", text))
    with pytest.raises(machine.MachineError, match=message):
        machine.java()
    with pytest.raises(session.SparkUnavailableError, match=message):
        session.require_machine()
    (finding,) = doctor.check_java()
    assert finding.level is doctor.Level.BLOCKS
    assert "JAVA_HOME" in finding.fix


def test_java_home_without_a_java_is_named_although_there_is_one_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(machine.MachineError, match=f"found none .JAVA_HOME={tmp_path}."):
        machine.java()


def _spark_at(folder: Path, version: str) -> str:
    (folder / "jars").mkdir(parents=True)
    (folder / "jars" / f"spark-core_2.13-{version}.jar").touch()
    return str(folder)


def test_the_spark_of_another_installation_is_not_used(monkeypatch, tmp_path, caplog):
    import pyspark

    own = Path(pyspark.__file__).parent
    other = _spark_at(tmp_path / "other", "3.5.1")
    monkeypatch.setenv("SPARK_HOME", other)
    session.require_machine()
    assert os.environ["SPARK_HOME"] == str(own)
    assert f"SPARK_HOME={other} holds no Spark {pyspark.__version__}" in caplog.text
    monkeypatch.setenv("SPARK_HOME", other)
    (finding,) = doctor.check_spark_home()
    assert (finding.level, finding.fix.split(",")[0]) == (doctor.Level.WARNING, "unset SPARK_HOME")
    same = _spark_at(tmp_path / "same", pyspark.__version__)
    monkeypatch.setenv("SPARK_HOME", same)
    assert session.spark_home() == Path(same)
    assert list(doctor.check_spark_home()) == []
    monkeypatch.setattr(pyspark, "__version__", "3.5.1")
    with pytest.raises(session.SparkUnavailableError, match=r"PySpark 3\.5\.1 .* take it out of PYTHONPATH"):
        session.spark_home()


def test_a_user_without_a_name_is_named_before_spark_starts(monkeypatch):
    machine.require_user()
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    with pytest.raises(session.SparkUnavailableError, match="user id 987654 has no entry in /etc/passwd"):
        session.require_machine()
    (finding,) = doctor.check_user()
    assert finding.level is doctor.Level.BLOCKS
    assert "echo 'mtgr:x:987654:" in finding.fix


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "internal"}, "internal,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "internal, localhost"}, "internal,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b,a"}, "a,b,127.0.0.1,localhost,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_no_proxy_leads_to_loopback(given, value):
    assert machine.spare_loopback(given) == {"no_proxy": value, "NO_PROXY": value}


class _Health(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"metadatabase": {"status": "healthy"}}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


# What the programs speak with: urllib (ours), httpx (Airflow's components), requests (MLflow), gRPC (Spark).
_CLIENTS = """
import sys, urllib.request
from spark_jobs.contract import command
url, address = sys.argv[1:]
def body(arguments):
    import grpc, httpx, requests
    assert urllib.request.urlopen(url, timeout=5).status == 200
    assert httpx.get(url, timeout=5).status_code == 200
    assert requests.get(url, timeout=5).status_code == 200
    grpc.channel_ready_future(grpc.insecure_channel(address)).result(timeout=5)
sys.exit(command.run(command.parser("clients", "any command"), body, []))
"""


@pytest.mark.parametrize("given", [{}, {"no_proxy": "internal.example"}])
def test_a_proxy_is_not_asked_for_loopback(monkeypatch, given):
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    for name in (*machine.environment.PROXIES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    nobody = f"http://127.0.0.1:{free_port()}"
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, nobody)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    server = HTTPServer(("127.0.0.1", 0), _Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    rpc = grpc.server(ThreadPoolExecutor(1))
    port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert AirflowApi(url, "admin", "").is_healthy("metadatabase")
        command = [sys.executable, "-c", _CLIENTS, url, f"127.0.0.1:{port}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        rpc.stop(0)
        server.shutdown()
        server.server_close()
    (finding,) = doctor.check_proxies()
    assert finding.level is doctor.Level.OK
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1080")
    (finding,) = doctor.check_proxies()
    assert finding.level is doctor.Level.BLOCKS
    assert "unset " in finding.fix


@pytest.mark.parametrize("sign", ["#", "?", "*", "[", "]", "{", "}", "\\", "%20", "\n", "\t"])
@pytest.mark.parametrize("setting", ["MTGR_VAR", "MTGR_LAKE", "MTGR_RUNS", "MTGR_FOODLOG"])
def test_a_folder_that_not_every_library_takes_is_refused(monkeypatch, tmp_path, sign, setting):
    monkeypatch.setenv("MTGR_VAR", str(tmp_path))
    locations.check()
    monkeypatch.setenv(setting, f"{tmp_path}/a{sign}b")
    with pytest.raises(UsageError, match=f"(?s){setting}=.*may not have"):
        locations.check()


def test_every_command_refuses_such_a_folder_and_writes_nothing(tmp_path):
    place = tmp_path / "a?b"
    day = ["--dataset", "foodlog", "--ds", "2026-03-01"]
    commands = {
        **{f"spark_jobs.{name}": day for name in ("ingest", "build_samples")},
        "spark_jobs.simulate": ["--from", day[-1], "--to", day[-1]],
        "expectations.gate": ["--suite", "events", *day],
        **{f"scripts.{name}": [] for name in ("run", "ui", "doctor")},
    }
    started = {
        name: subprocess.Popen(
            [sys.executable, "-m", name, *arguments],
            cwd=ROOT,
            env={**os.environ, "MTGR_VAR": str(place)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for name, arguments in commands.items()
    }
    for name, process in started.items():
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, "MTGR_VAR=" in errors) == (2, True), (name, errors)
    assert list(tmp_path.iterdir()) == []


def test_make_knows_the_presets_without_loading_them():
    assert plain_presets() == list(PRESETS)
    code = (
        "import sys, scripts.run, scripts.ui, scripts.backfill, scripts.doctor; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
