"""Serving without a Triton: what takes a package up, what answers a batch, and what stands before it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import types
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from model import publish
from model.data.stored import StoredRows
from model.data.synthetic import random_samples
from model.judging.scoring import Scorer
from model.serving import front, kserve, roles
from model.serving.front import Front, Limits
from model.serving.holder import Holder, Served
from model.serving.package import PackageError
from model.serving.request import RequestForm
from model.serving.score_log import ScoreLog
from model.serving.today import Today
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.malformed import malformed_rows, malformed_tensors
from tests.model.packages import folder_of, make_package


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Packages 1 and 2, which score otherwise, and 3, of which a byte is wrong; `current` names 1."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MTGR_VAR", str(tmp_path_factory.mktemp("serving")))
    made = {version: make_package(FOODLOG, version, seed=version) for version in (1, 2, 3)}
    file = folder_of(FOODLOG, 3) / "dense.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    roles.point("foodlog", roles.CURRENT, 1)
    yield made
    patch.undo()


def request_rows(number: int, seed: int = 5) -> list[dict[str, Any]]:
    table = random_samples(FOODLOG, number, seed=seed, max_candidates=9)
    return table.drop_columns(["label_click", "label_conversion"]).to_pylist()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_role_names_a_package_whose_digests_hold_and_what_it_named_before(packages: Any) -> None:
    assert roles.point("foodlog", roles.CURRENT, 2) == 1
    assert roles.version_in("foodlog", roles.CURRENT) == 2
    with pytest.raises(PackageError, match="it is not loaded"):
        roles.point("foodlog", roles.CURRENT, 3)
    with pytest.raises(PackageError, match="no serving package"):
        roles.point("foodlog", roles.CURRENT, 9)
    assert roles.version_in("foodlog", roles.CURRENT) == 2
    assert publish.main(["--dataset", "foodlog", "--back"]) == 0
    assert roles.version_in("foodlog", roles.CURRENT) == 1
    assert roles.version_in("foodlog", roles.PREVIOUS) == 2


def test_a_swap_takes_place_between_batches_and_a_refused_package_leaves_the_old_one(packages: Any) -> None:
    told: list[int | None] = []
    link = roles.link("foodlog", roles.CURRENT)
    holder = Holder(link, lambda path: Served(path, "cpu", 20_000), told.append)
    batch = holder.served.form.encoder.encode(random_samples(FOODLOG, 3))
    before = holder.served.score(batch)
    roles.point("foodlog", roles.CURRENT, 2)
    until(lambda: holder.served.version == 2)
    assert np.abs(holder.served.score(batch) - before).max() > 1e-3
    roles._replace(link, 3)  # as a hand would
    until(lambda: told[-1] is None)
    assert holder.served.version == 2
    roles.point("foodlog", roles.CURRENT, 1)
    until(lambda: holder.served.version == 1)
    np.testing.assert_array_equal(holder.served.score(batch), before)
    holder.close()
    assert told == [1, 2, None, 1]


def test_scores_do_not_depend_on_neighbours_or_on_where_a_batch_is_cut(packages: Any) -> None:
    whole, cut = (Served(folder_of(FOODLOG, 1), "cpu", tokens) for tokens in (20_000, 60))
    rows = [whole.form.of_row(row) for row in request_rows(9)]
    together = whole.form.encoder.encode(StoredRows.joined(rows))
    alone = [whole.score(whole.form.encoder.encode(row)) for row in rows]
    for scores in (whole.score(together), cut.score(together)):
        np.testing.assert_allclose(scores, np.concatenate(alone, axis=1), atol=1e-6, rtol=0)


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class Request(dict[str, Any]):
    cancelled = False

    def is_cancelled(self) -> bool:
        return self.cancelled


class Error:
    INVALID_ARG, CANCELLED = 1, 2

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Metric:
    GAUGE, COUNTER = 1, 2

    def __init__(self, **_: Any) -> None:
        self.value = 0.0

    def Metric(self, labels: Any) -> Any:  # noqa: N802 - Triton's own name
        return self

    def set(self, value: float) -> None:
        self.value = value

    def increment(self, by: float) -> None:
        self.value += by


@pytest.fixture
def backend(packages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model of Triton's Python backend, in this process."""
    utilities = types.SimpleNamespace(
        TritonError=Error,
        MetricFamily=Metric,
        Tensor=Tensor,
        InferenceResponse=lambda output_tensors=None, error=None: output_tensors or error,
        get_input_tensor_by_name=lambda request, name: (
            Tensor(name, request[name]) if name in request else None
        ),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities)
    monkeypatch.delitem(sys.modules, "model.serving.backend", raising=False)
    from model.serving.backend import TritonPythonModel

    link = roles.link("foodlog", roles.CURRENT)
    options = {
        "link": str(link),
        "log": str(tmp_path / "log"),
        "batch_tokens": 20_000,
        "max_batch": 32,
        "engine": {},
    }
    config = {"parameters": {"options": {"string_value": json.dumps(options)}}}
    model = TritonPythonModel()
    model.initialize(
        {"model_config": json.dumps(config), "model_name": "foodlog", "model_instance_name": "foodlog_0_0"}
    )
    return model


def test_a_request_that_is_not_right_disturbs_no_neighbour(
    packages: Any, backend: Any, tmp_path: Path
) -> None:
    form = RequestForm(FOODLOG)
    rows = request_rows(5)
    rows[1]["candidate_price"][0] = float("nan")
    requests = [Request(form.tensors_of(form.of_row(row))) for row in rows]
    del requests[2]["ids"]
    requests[3].cancelled = True
    answers = backend.execute(requests)
    assert [type(answer) for answer in answers] == [list, Error, Error, Error, list]
    assert "column candidate_price, row 0 (user 1): nan is not a finite number" in answers[1].message
    assert answers[2].message.startswith("tensor ids is missing")
    assert [answer.code for answer in answers[1:4]] == [Error.INVALID_ARG, Error.INVALID_ARG, Error.CANCELLED]
    version = roles.version_in("foodlog", roles.CURRENT)
    package = packages[version]
    scorer = Scorer(package.dataset, package.config, package.ranker())
    for place in (0, 4):
        expected = scorer.score([rows[place]])
        scores, served = answers[place]
        assert served.values.tolist() == [[version]]
        np.testing.assert_allclose(
            scores.values[0], [expected["ctr_live"], expected["ctcvr_live"]], atol=1e-6
        )
    backend.finalize()
    (file,) = (tmp_path / "log").rglob("*.parquet")
    logged = pq.read_table(file)
    assert logged.column("user_id").to_pylist() == [rows[0]["user_id"], rows[4]["user_id"]]
    assert logged.column("item_id").to_pylist() == [
        rows[0]["candidate_item_id"],
        rows[4]["candidate_item_id"],
    ]
    assert logged.column("ctr")[1].as_py() == pytest.approx(answers[4][0].values[0, 0].tolist())
    assert set(logged.column("version").to_pylist()) == {version}


def test_what_the_engine_has_done_is_counted_once_and_from_nothing_after_a_swap(backend: Any) -> None:
    form = RequestForm(FOODLOG)
    requests = [Request(form.tensors_of(form.of_row(row))) for row in request_rows(1)]
    version = backend._holder.served.version
    for counts in ((3, 4), (2, 9)):
        served = backend._holder.served = Served(folder_of(FOODLOG, version), "cpu", 20_000)
        for hits in counts:
            served._scorer.counts = lambda hits=hits: {("prefixes", "hits"): hits}  # type: ignore[method-assign]
            backend.execute(requests)
    assert backend._counters["prefixes", "hits"].value == 4 + 9
    backend.finalize()


def test_requests_end_to_end_score_as_each_alone(backend: Any) -> None:
    form = RequestForm(FOODLOG)
    alone = [form.tensors_of(form.of_row(row)) for row in request_rows(4)]
    (together,) = backend.execute([Request(form.joined(alone))])
    parts = [answers[0].values[0] for answers in backend.execute([Request(one) for one in alone])]
    np.testing.assert_allclose(together[0].values[0], np.concatenate(parts, axis=1), atol=1e-6)
    wrong = form.joined(alone)
    wrong["row"][0, 5 + 2] += 1  # a static behaviour more than there is
    short = {**form.joined(alone), "row": form.joined(alone)["row"][:, :-1]}
    answers = backend.execute([Request(wrong), Request(short), Request(alone[0])])
    assert [type(answer) for answer in answers] == [Error, Error, list]
    assert "tensor ids" in answers[0].message
    assert "tensor row has 19 values" in answers[1].message
    backend.finalize()


def test_scores_are_kept_for_thirty_days(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    for age in (29, 31, 400):
        (tmp_path / f"ds={today - timedelta(days=age)}").mkdir()
    log = ScoreLog(tmp_path, max_s=60)
    log.add(4, 5, 6, np.array([7]), np.ones((2, 1), np.float32))
    log.close()
    assert {path.name for path in tmp_path.glob("ds=*")} == {
        f"ds={today}",
        f"ds={today - timedelta(days=29)}",
    }
    assert pq.read_table(next(tmp_path.rglob("*.parquet"))).column("item_id").to_pylist() == [[7]]


BATCHES: list[list[int]] = []  # users of each batch that `_triton` was sent


async def _triton(request: web.Request) -> web.Response:
    """A Triton that scores by the user's number, or answers as it says."""
    body = await request.read()
    tensors, _ = kserve.decode(body, request.headers[kserve.LENGTH_HEADER])
    rows = tensors["row"].reshape(-1, 5)
    users = rows[:, 0].tolist()
    BATCHES.append(users)
    if 500 in users:
        return web.json_response({"error": "the model has ended"}, status=503)
    if 502 in users:
        return web.json_response({"error": "column candidate_price: 1 is not"}, status=400)
    if 503 in users:
        await asyncio.sleep(5)
    await asyncio.sleep(0.02)
    of_candidates = np.repeat(rows[:, 0] / 1000, rows[:, 4]).astype(np.float32)
    scores = {"scores": np.stack([of_candidates, of_candidates])[None], "version": np.array([[7]])}
    answer, length = kserve.encode(scores, "outputs")
    return web.Response(body=answer, headers={kserve.LENGTH_HEADER: str(length)})


def with_front(
    use: Callable[[Any], Any], lookups: Path = Path("/none"), *, has_shadow: bool = False, **limits: Any
) -> None:
    """Calls `use` with a client of a front before `_triton`."""

    async def run() -> None:
        app = web.Application()
        if has_shadow:
            app.router.add_post("/v2/models/foodlog-shadow/infer", _triton)
        app.router.add_post("/v2/models/foodlog/infer", _triton)
        async with TestServer(app) as server:
            url = str(server.make_url("")).rstrip("/")
            models = {"": "foodlog", "shadow": "foodlog-shadow"}
            form = RequestForm(FOODLOG)
            made = Front(form, url, url + "/metrics", models, Limits(**limits), lookups)
            async with TestClient(TestServer(made.app(), handler_cancellation=True)) as client:
                await use(client)

    asyncio.run(run())


def test_the_front_answers_people_and_machines() -> None:
    row = {**request_rows(1)[0], "user_id": 250}

    async def use(client: Any) -> None:
        answer = await client.post("/score", json=row)
        assert answer.status == 200, await answer.text()
        scores = await answer.json()
        count = len(row["candidate_item_id"])
        assert scores == {"ctr": [0.25] * count, "ctcvr": [0.25] * count, "version": 7}
        form = RequestForm(FOODLOG)
        body, length = kserve.encode(form.tensors_of(form.of_row(row)))
        headers = {kserve.LENGTH_HEADER: str(length)}
        answer = await client.post("/v2/models/foodlog/infer", data=body, headers=headers)
        tensors, _ = kserve.decode(await answer.read(), answer.headers[kserve.LENGTH_HEADER], "outputs")
        assert tensors["scores"].shape == (1, 2, count)
        told = await (await client.get("/metrics")).text()
        assert 'mtgr_answers_total{path="/score",code="200"} 1' in told

    with_front(use)


@pytest.mark.parametrize(
    ("user", "status", "told"),
    [(500, 503, "has ended"), (502, 400, "candidate_price"), (503, 504, "no answer")],
)
def test_what_triton_refuses_is_answered_as_such(user: int, status: int, told: str) -> None:
    async def use(client: Any) -> None:
        answer = await client.post("/score", json={**request_rows(1)[0], "user_id": user})
        assert answer.status == status
        assert told in (await answer.json())["error"]

    with_front(use, deadline_ms=300)


def test_what_waits_goes_in_one_batch_and_each_gets_its_own_scores_though_a_neighbour_is_refused() -> None:
    rows = [
        {**row, "user_id": user} for row, user in zip(request_rows(7), (1, 2, 3, 4, 502, 6, 7), strict=True)
    ]

    async def use(client: Any) -> None:
        BATCHES.clear()
        answers = await asyncio.gather(*(client.post("/score", json=row) for row in rows))
        assert [answer.status for answer in answers] == [200] * 4 + [400] + [200] * 2
        for row, answer in zip(rows, answers, strict=True):
            if answer.status == 200:
                expected = [np.float32(row["user_id"] / 1000)] * len(row["candidate_item_id"])
                np.testing.assert_allclose((await answer.json())["ctr"], expected)
        assert len(BATCHES[0]) == 1  # an idle model is asked at once
        assert sorted(BATCHES[0] + BATCHES[1]) == [1, 2, 3, 4, 6, 7, 502]
        assert all(len(alone) == 1 for alone in BATCHES[2:])

    with_front(use)


def test_the_mirror_asks_the_shadow_the_same_and_its_failure_changes_no_answer() -> None:
    rows = [{**row, "user_id": user} for row, user in zip(request_rows(2), (11, 12), strict=True)]

    async def use(client: Any) -> None:
        BATCHES.clear()
        for row in rows:
            assert (await client.post("/score", json=row)).status == 200
        await asyncio.sleep(0.1)
        told = await (await client.get("/metrics")).text()
        assert 'mtgr_answers_total{path="mirror",code="200"} 2' in told
        assert sorted(user for users in BATCHES for user in users) == [11, 11, 12, 12]

    with_front(use, is_mirrored=True, has_shadow=True)

    async def without(client: Any) -> None:  # Triton has no shadow: 404
        assert (await client.post("/score", json=rows[0])).status == 200
        await asyncio.sleep(0.1)
        assert 'path="mirror",code="503"' in await (await client.get("/metrics")).text()

    with_front(without, is_mirrored=True)


def test_more_than_may_wait_are_answered_429_and_a_body_that_is_too_long_413() -> None:
    row = request_rows(1)[0]

    async def use(client: Any) -> None:
        slow = [client.post("/score", json={**row, "user_id": 503}) for _ in range(5)]
        answers = await asyncio.gather(*slow)
        assert sorted(answer.status for answer in answers) == [429, 429, 429, 504, 504]
        assert all(a.headers["Retry-After"] == "1" for a in answers if a.status == 429)
        assert (await client.post("/score", json=row)).status == 200  # places are given back
        assert (await client.post("/score", data=b"0" * 20_000)).status == 413
        assert (await client.post("/score", json=row, headers={"Deadline-Ms": "-5"})).status == 400
        assert (await client.post("/score/nobody", json=row)).status == 404
        assert (await client.post("/score/shadow", json=row)).status == 404  # Triton has no such model

    with_front(use, deadline_ms=300, max_waiting=2, max_body=15_000)


def test_malformed_requests_are_answered_4xx_with_field_and_rule() -> None:
    rng = np.random.default_rng(7)
    rows = [row for row in request_rows(20) if row["static_time_ms"] and row["realtime_time_ms"]]
    form = RequestForm(FOODLOG)
    tensors = form.tensors_of(form.of_row(rows[0]))

    async def use(client: Any) -> None:
        for case in malformed_rows(FOODLOG, rows, rng, 60):
            data = case.body if isinstance(case.body, str) else json.dumps(case.body)
            answer = await client.post("/score", data=data)
            told = (await answer.json()).get("error", "")
            # What only values tell, Triton's side refuses; the front lets it pass.
            assert answer.status == 200 or (answer.status == 400 and case.field in told), (case, told)
        for case in malformed_tensors(tensors, rng, 40):
            headers = {} if case.length is None else {kserve.LENGTH_HEADER: case.length}
            answer = await client.post("/v2/models/foodlog/infer", data=case.body, headers=headers)
            assert answer.status == 400
            assert case.field in (await answer.json())["error"]

    with_front(use)


def test_requests_are_completed_from_the_lookups_that_are_published_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store:
        opened: ClassVar[list[str]] = []

        def __init__(self, dataset: Any, path: Path) -> None:
            self.opened.append(path.name)
            self.city = int(path.read_text())

        def complete(self, request: dict[str, Any], today: Today | None) -> dict[str, Any]:
            assert today is None
            return {"profile_city": self.city, **{k: v for k, v in request.items() if k != "time_ms"}}

        def close(self) -> None:
            self.opened.append("closed")

    monkeypatch.setattr(front, "Lookups", Store)
    link = tmp_path / "lookups"
    for name, city in (("one", "1"), ("two", "99")):
        (tmp_path / name).write_text(city)
    row = {**request_rows(1)[0], "time_ms": 5}
    del row["profile_city"]

    async def use(client: Any) -> None:
        assert (await client.post("/score", json=row)).status == 503  # nothing is published
        link.symlink_to("one")
        for _ in range(2):
            assert (await client.post("/score", json=row)).status == 200
        link.unlink()
        link.symlink_to("two")
        assert (await client.post("/score", json=row)).status == 200
        assert Store.opened == ["one", "two", "closed"]

    with_front(use, lookups=link)


def test_events_of_today_are_held_and_what_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = "2026-03-02"
    monkeypatch.setattr(front, "Lookups", lambda dataset, path: types.SimpleNamespace(day=day))
    link = tmp_path / "lookups"
    event = {"event_id": "a", "event_type": "impression", "user_id": 1, "item_id": 2}
    event["time_ms"] = FOODLOG.day_start_ms(day)

    async def use(client: Any) -> None:
        async def told(*events: Any) -> tuple[int, Any]:
            answer = await client.post("/events", json={"events": events})
            return answer.status, await answer.json()

        assert (await told(event))[0] == 503  # of which day it is
        link.symlink_to("one")
        assert await told(event, event) == (200, {"events": 1})
        status, answer = await told({**event, "event_id": "b"}, {**event, "user_id": "x"})
        assert (status, answer["error"][:25]) == (400, "events[1]: user_id is 'x'")
        assert (await client.post("/events", json={})).status == 400
        status, answer = await told({**event, "event_id": "c"})
        assert (status, answer) == (429, {"error": "there are 2 events of today, and no room for more"})
        assert "mtgr_events_today 2" in await (await client.get("/metrics")).text()

    with_front(use, lookups=link, today_events=2)

    async def none(client: Any) -> None:
        answer = await client.post("/events", json={"events": [event]})
        assert (answer.status, "--today-events" in (await answer.json())["error"]) == (404, True)

    with_front(none)


def test_without_triton_the_front_is_not_ready_and_says_so() -> None:
    async def run() -> None:
        form, nowhere = RequestForm(FOODLOG), "http://127.0.0.1:9"
        made = Front(form, nowhere, nowhere, {"": "foodlog"}, Limits(), Path("/none"))
        async with TestClient(TestServer(made.app())) as client:
            assert (await client.get("/v2/health/live")).status == 200
            assert (await client.get("/v2/health/ready")).status == 503
            answer = await client.post("/score", json=request_rows(1)[0])
            assert answer.status == 503
            assert "Triton's metrics are not there" in await (await client.get("/metrics")).text()

    asyncio.run(run())
