"""A forked step is, to its caller, the process that `python -m` would have been."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = "long" * 25  # longer than the name of a socket may be
SERVER = """
import sys
from pathlib import Path
from scripts.launchers import fork_server
fork_server.load(["json"])
fork_server.run(fork_server.serve(Path(sys.argv[1])))
"""
STEP = """
import json, os, sys, time
told = {"argv": sys.argv[1:], "cwd": os.getcwd(), "name": os.environ["NAME"], "in": sys.stdin.read()}
told["loaded sources"] = [name for name in sys.modules if name.startswith(("scripts", "model", "spark_jobs"))]
print(json.dumps(told))
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
ENDER = """
import atexit, sys, threading, time
atexit.register(lambda: print("at its exit"))
threading.Thread(target=lambda: (time.sleep(0.3), print("from a thread"))).start()
print("from the step")
if sys.argv[1] != "returns":
    sys.exit({"none": None, "300": 300, "words": "it is over"}[sys.argv[1]])
"""
SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open("pids.part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.part", "pids")
time.sleep(60)
"""


@pytest.fixture
def place(tmp_path):
    """Folder of modules, and of the socket where there is a server."""
    folder = tmp_path / LONG
    folder.mkdir()
    (folder / "step.py").write_text(STEP)
    (folder / "ender.py").write_text(ENDER)
    (folder / "sleeper.py").write_text(SLEEPER)
    return folder


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Starts a server where none runs, which takes two seconds of a core, and gives it with its socket."""
    folder = tmp_path_factory.mktemp("server") / LONG
    folder.mkdir()
    started = []

    def serve():
        if not started or started[-1].poll() is not None:
            (folder / "socket").unlink(missing_ok=True)
            command = [sys.executable, "-c", SERVER, str(folder / "socket")]
            started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT))
            _await(lambda: (folder / "socket").exists())
        return started[-1], folder / "socket"

    yield serve
    started[-1].terminate()
    started[-1].wait(timeout=20)


@pytest.fixture
def server(serve, place):
    process, path = serve()
    (place / "socket").symlink_to(path)
    return process


def _await(is_so):
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def _launch(place, *words, **kwargs):
    return subprocess.Popen(
        [
            sys.executable,
            "-S",
            str(ROOT / "scripts" / "launchers" / "forked.py"),
            str(place / "socket"),
            "-m",
            *words,
        ],
        cwd=place,
        env={**os.environ, "NAME": "caller's", "PYTHONPATH": f"{ROOT}:{place}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def _sleeper(place):
    caller = _launch(place, "sleeper", start_new_session=True)
    _await((place / "pids").exists)
    return caller, [int(pid) for pid in (place / "pids").read_text().split()]


def _is_gone(pid):
    try:
        return psutil.Process(pid).status() == "zombie"
    except psutil.NoSuchProcess:  # at any moment, so it is not asked for first
        return True


def _are_gone(pids):
    return all(_is_gone(pid) for pid in pids)


def _check_step(place, said="to stderr\n"):
    caller = _launch(place, "step", "7", "two words")
    out, err = caller.communicate("given", timeout=20)
    told = json.loads(out)
    assert told.pop("loaded sources") == []  # it imports them as they are now
    assert told == {"argv": ["7", "two words"], "cwd": str(place), "name": "caller's", "in": "given"}
    assert err == said
    assert caller.returncode == 7


def test_a_step_has_its_callers_arguments_folder_environment_files_and_exit_code(place, server):
    _check_step(place)
    assert oct((place / "socket").stat().st_mode)[-3:] == "700"  # nobody else may have code run


def test_a_step_runs_while_the_server_is_not_there_yet_and_says_so(place):
    _check_step(place, "the fork server is still loading: this step imports by itself\nto stderr\n")


def test_an_error_that_nobody_caught_is_a_traceback_and_exit_code_1(place, server):
    caller = _launch(place, "step", "no number")
    _, err = caller.communicate("", timeout=20)
    assert caller.returncode == 1
    assert "invalid literal for int()" in err


@pytest.mark.parametrize("how", ["returns", "none", "300", "words"])
def test_a_step_ends_as_a_process_of_its_own_would(place, server, how):
    ours = _launch(place, "ender", how)
    theirs = subprocess.run([sys.executable, "ender.py", how], cwd=place, capture_output=True, text=True)
    assert ours.communicate("", timeout=20) == (theirs.stdout, theirs.stderr)
    assert ours.returncode == theirs.returncode
    assert theirs.stdout == "from the step\nfrom a thread\nat its exit\n"


def test_steps_run_side_by_side(place, server):
    caller, _ = _sleeper(place)
    _check_step(place)
    caller.kill()
    caller.communicate(timeout=20)


def test_sigterm_reaches_the_step_and_its_children(place, server):
    caller, pids = _sleeper(place)
    os.killpg(caller.pid, signal.SIGTERM)  # as Airflow does with a task that it stops
    caller.communicate(timeout=20)
    assert caller.returncode == 128 + signal.SIGTERM
    _await(lambda: _are_gone(pids))


def test_a_step_dies_with_a_caller_that_is_killed(place, server):
    caller, pids = _sleeper(place)
    caller.kill()
    caller.communicate(timeout=20)
    _await(lambda: _are_gone(pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_step_dies_with_the_server_and_its_caller_says_so(place, server, number):
    caller, pids = _sleeper(place)
    server.send_signal(number)
    assert caller.wait(timeout=20) == 1
    assert caller.stderr.readline() == "the fork server ended while the step ran\n"
    _await(lambda: _are_gone(pids[:1]))
    if number == signal.SIGKILL:  # then only the starter of all components knows of the step's children
        os.kill(pids[1], signal.SIGKILL)


def test_a_caller_that_asks_for_nothing_does_not_stop_the_server(place, server):
    with socket.socket(socket.AF_UNIX) as hasty:
        here = os.open(place, os.O_RDONLY)
        hasty.connect(f"/proc/self/fd/{here}/socket")
        os.close(here)
    _check_step(place)
