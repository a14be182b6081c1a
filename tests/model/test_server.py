"""The real server: `python -m model.serve` with Triton behind its front, under load, swaps and kills."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pa_dataset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.load import Call, Load, at_rate, closed
from model import serve
from model.judging.scoring import Scorer
from model.serving import kserve, roles, server, triton
from model.serving.request import RequestForm
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.malformed import malformed_rows, malformed_tensors
from tests.model.packages import folder_of, make_package
from tests.model.test_serving import request_rows, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("pytriton") is None, reason="nvidia-pytriton is not installed"
    ),
]


class Serving:
    """A server in a process of its own."""

    def __init__(self, log: Path, *more: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "model.serve", "--dataset", "foodlog", "--port", "0", *more]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        end = time.monotonic() + 120
        while (answer := re.search(r"answers at (\S+);", log.read_text())) is None:
            assert time.monotonic() < end, log.read_text()
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.1)
        self.url = answer.group(1)

    def children(self) -> list[int]:
        """Triton, and the processes that score."""
        done = subprocess.run(
            ["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        (triton,) = map(int, done.stdout.split())
        done = subprocess.run(["pgrep", "-P", str(triton)], capture_output=True, text=True, check=False)
        return [triton, *map(int, done.stdout.split())]

    def ask(self, body: Any, path: str = "/score", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def resident_kb(pid: int) -> int:
    line = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert line is not None
    return int(line.group(1))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, Any]:
    monkeypatch.setenv("MTGR_VAR", str(tmp_path / "var"))
    made = {version: make_package(FOODLOG, version, seed=version) for version in (1, 2)}
    roles.point("foodlog", roles.CURRENT, 1)
    return made


@pytest.fixture
def serving(packages: dict[int, Any], tmp_path: Path) -> Iterator[Serving]:
    started = Serving(tmp_path / "serve.log", "--instances", "2")
    yield started
    if started.process.poll() is None:
        started.stop()


def calls(rows: list[dict[str, Any]]) -> list[Call]:
    headers = {"Content-Type": "application/json"}
    return [Call(path="/score", body=json.dumps(row).encode(), headers=headers) for row in rows]


def under_load(server: Serving, seconds: float, rate: float = 40) -> tuple[threading.Thread, list[Load]]:
    loads: list[Load] = []

    def run() -> None:
        loads.append(asyncio.run(at_rate(server.url, calls(request_rows(20)), rate, seconds, keep=True)))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, loads


def test_swaps_and_a_rollback_under_load_drop_no_request(
    serving: Serving, packages: Any, tmp_path: Path
) -> None:
    row = request_rows(1)[0]
    thread, loads = under_load(serving, 15)
    for version in (2, 1, 2):
        time.sleep(3)
        roles.point("foodlog", roles.CURRENT, version)
    time.sleep(3)
    status, scores = serving.ask(row)
    thread.join()
    (load,) = loads
    assert set(load.statuses) == {200}, load.statuses
    assert len(load.bodies) > 400
    assert {json.loads(body)["version"] for body in load.bodies} == {1, 2}
    package = packages[2]
    expected = Scorer(package.dataset, package.config, package.ranker()).score([row])
    assert (status, scores["version"]) == (200, 2)
    np.testing.assert_allclose(scores["ctcvr"], expected["ctcvr_live"], atol=1e-5)
    assert serving.stop() == 0
    logged = pa_dataset.dataset(
        tmp_path / "var" / "serving" / "foodlog" / "server" / "scores", format="parquet"
    )
    assert logged.count_rows() == len(load.bodies) + 1
    assert json.loads(serving.log.read_text().splitlines()[-1])["served"]


def test_a_thousand_malformed_requests_are_each_answered_4xx(serving: Serving) -> None:
    rng = np.random.default_rng(11)
    rows = [row for row in request_rows(20) if row["static_time_ms"] and row["realtime_time_ms"]]
    form = RequestForm(FOODLOG)
    tensors = form.tensors_of(form.of_row(rows[0]))

    def memory() -> int:
        return sum(resident_kb(pid) for pid in (serving.process.pid, *serving.children()))

    processes, before = serving.children(), 0
    for number, case in enumerate(malformed_rows(FOODLOG, rows, rng, 700)):
        status, answer = serving.ask(case.body.encode() if isinstance(case.body, str) else case.body)
        assert status == 400, (case, answer)
        assert case.field in answer["error"], (case, answer)
        if number == 200:
            before = memory()
    for case in malformed_tensors(tensors, rng, 300):
        headers = {} if case.length is None else {kserve.LENGTH_HEADER: case.length}
        status, answer = serving.ask(case.body, "/v2/models/foodlog/infer", headers)
        assert status == 400, (case, answer)
        assert case.field in answer["error"], (case, answer)
    assert serving.ask(b"0" * (5 << 20))[0] == 413
    assert memory() - before < 50_000  # kB
    assert serving.children() == processes
    assert serving.ask(rows[0])[0] == 200


def test_killed_processes_come_back_with_the_same_package(serving: Serving, tmp_path: Path) -> None:
    row = request_rows(1)[0]
    before = serving.ask(row)
    thread, loads = under_load(serving, 25, rate=20)
    time.sleep(2)
    os.kill(serving.children()[0], signal.SIGKILL)  # Triton itself
    half = folder_of(FOODLOG, 9)  # what a killed export leaves: no package.json
    half.mkdir()
    roles._replace(roles.link("foodlog", roles.SHADOW), 9)
    thread.join()
    until(lambda: serving.ask(row)[0] == 200, 120)
    assert serving.ask(row) == before
    assert {200} <= set(loads[0].statuses) <= {200, 429, 503, 504}
    processes = serving.children()
    os.kill(serving.process.pid, signal.SIGKILL)  # the front
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < end, "what it started goes on without it"
        time.sleep(0.2)
    roles.clear("foodlog", roles.SHADOW)
    again = Serving(tmp_path / "again.log")
    assert again.ask(row) == before
    again.stop()


def test_the_shadow_is_asked_beside_the_champion(packages: Any, tmp_path: Path) -> None:
    roles.point("foodlog", roles.SHADOW, 2)
    server = Serving(tmp_path / "serve.log", "--instances", "1", "--no-log")
    row = request_rows(1)[0]
    versions = [server.ask(row, path)[1]["version"] for path in ("/score", "/score/shadow")]
    assert versions == [1, 2]
    server.stop()


def test_triton_alone_serves_the_repository(packages: Any, tmp_path: Path) -> None:
    repository, backends, log = tmp_path / "repository", tmp_path / "backends", tmp_path / "triton.log"
    assert serve.main(["--dataset", "foodlog", "--repository", str(repository), "--instances", "1"]) == 0
    triton.write_backends(backends)
    form, rows = RequestForm(FOODLOG), request_rows(3)
    sent = form.joined([form.tensors_of(form.of_row(row)) for row in rows])
    body, length = kserve.encode(sent)

    async def run() -> dict[str, Any]:
        port = server.free_ports()
        process = await triton.start(repository, backends, log, port)
        url = f"http://127.0.0.1:{port}/v2/models/foodlog"
        try:
            for _ in range(600):
                assert process.returncode is None, log.read_text()
                if await asyncio.to_thread(is_ready, f"{url}/ready"):
                    break
                await asyncio.sleep(0.1)
            request = urllib.request.Request(f"{url}/infer", body, {kserve.LENGTH_HEADER: str(length)})
            answer = await asyncio.to_thread(urllib.request.urlopen, request, timeout=30)
            return kserve.decode(answer.read(), answer.headers[kserve.LENGTH_HEADER], "outputs")[0]
        finally:
            await triton.stop(process)

    outputs = asyncio.run(run())
    scorer = Scorer(packages[1].dataset, packages[1].config, packages[1].ranker())
    scores = [scorer.score([row]) for row in rows]
    for place, task in enumerate(("ctr", "ctcvr")):
        wanted = np.concatenate([of_row[f"{task}_live"] for of_row in scores])
        np.testing.assert_allclose(outputs["scores"][0, place], wanted, atol=1e-5)
    assert outputs["version"].tolist() == [[1]]


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_what_cannot_be_served_is_not_started(packages: Any, tmp_path: Path) -> None:
    (folder_of(FOODLOG, 1) / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "model.serve", "--dataset", "foodlog", "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 1
    assert "it is not loaded" in done.stderr


def any_json() -> st.SearchStrategy[Any]:
    numbers = st.integers() | st.floats() | st.sampled_from([2**63, -1, 1e400, -0.0])
    leaves = st.none() | st.booleans() | numbers | st.text(max_size=5)
    return st.recursive(
        leaves, lambda of: st.lists(of, max_size=4) | st.dictionaries(st.text(), of), max_leaves=9
    )


@pytest.mark.timeout(900)
def test_whatever_is_sent_is_scored_or_answered_4xx(serving: Serving) -> None:
    rows = request_rows(4)
    columns = sorted(rows[0])
    form = RequestForm(FOODLOG)
    body, length = kserve.encode(form.tensors_of(form.of_row(rows[0])))
    processes = serving.children()

    def check(status: int, answer: Any) -> None:
        assert status in (200, 400, 404, 413), (status, answer)
        if status == 200:
            assert all(0 <= score <= 1 for score in [*answer["ctr"], *answer["ctcvr"]])
        else:
            assert answer["error"]

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        row=st.sampled_from(rows),
        changes=st.dictionaries(st.sampled_from([*columns, "time_ms", "other"]), any_json(), max_size=3),
        left_out=st.sets(st.sampled_from(columns), max_size=1),
    )
    def of_rows(row: dict[str, Any], changes: dict[str, Any], left_out: set[str]) -> None:
        sent = {name: value for name, value in {**row, **changes}.items() if name not in left_out}
        status, answer = serving.ask(sent)
        if status == 503:  # `time_ms` asks for lookups, and none are published
            assert "time_ms" in sent
            return
        check(status, answer)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(sent=st.binary(max_size=200) | any_json().map(lambda value: json.dumps(value).encode()))
    def of_bytes(sent: bytes) -> None:
        check(*serving.ask(sent))

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        place=st.integers(0, len(body) - 1),
        byte=st.integers(0, 255),
        cut=st.integers(0, 30),
        header=st.just(str(length)) | st.text("0123456789-x", max_size=6),
    )
    def of_tensors(place: int, byte: int, cut: int, header: str) -> None:
        sent = body[:place] + bytes([byte]) + body[place + 1 : len(body) - cut]
        asked = urllib.request.Request(
            f"{serving.url}/v2/models/foodlog/infer", sent, {kserve.LENGTH_HEADER: header}
        )
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                told = answer.headers[kserve.LENGTH_HEADER]
                scores = kserve.decode(answer.read(), told, "outputs")[0]["scores"]
                assert np.isfinite(scores).all()
        except urllib.error.HTTPError as error:
            check(error.code, json.loads(error.read()))

    of_rows()
    of_bytes()
    of_tensors()
    assert serving.children() == processes
    assert serving.ask(rows[0])[0] == 200


SOAK_S = 600


@pytest.mark.timeout(SOAK_S + 300)
def test_ten_minutes_at_saturation_answer_all_and_take_no_more_memory(packages: Any, tmp_path: Path) -> None:
    # The longest deadline: what is looked for is a lost answer or memory, not how fast this machine is.
    serving = Serving(tmp_path / "serve.log", "--instances", "2", "--deadline-ms", "60000")
    sent = calls(request_rows(40))
    processes = [serving.process.pid, *serving.children()]
    asyncio.run(closed(serving.url, sent, 64, SOAK_S / 10))  # until all that is kept is there
    before = [resident_kb(pid) for pid in processes]
    load = asyncio.run(closed(serving.url, sent, 64, SOAK_S))
    after = [resident_kb(pid) for pid in processes]
    assert set(load.statuses) == {200}, load.statuses
    assert load.statuses[200] > 20 * SOAK_S
    assert [serving.process.pid, *serving.children()] == processes
    for first, last in zip(before, after, strict=True):
        assert last - first < 40_000, (before, after)
    assert serving.stop() == 0
    print(load.statuses, before, after)  # noqa: T201 - what a person who waited ten minutes wants to see
