"""gRPC: scores, and what is not right answered by its code; by the front's limits and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from grpc import StatusCode

from model.serving import grpc_front, kserve
from model.serving.front import Front, Limits
from model.serving.inference_proto import MESSAGES, SERVICE
from model.serving.request import RequestForm
from spark_jobs.contract.foodlog import FOODLOG
from tests.model.test_serving import _triton, request_rows

FORM = RequestForm(FOODLOG)
Ask = Callable[..., Awaitable[Any]]


def request(row: dict[str, Any] | None = None, **fields: Any) -> Any:
    made = MESSAGES["ModelInferRequest"](model_name="foodlog", id="7")
    for name, tensor in FORM.tensors_of(FORM.of_row(row or request_rows(1)[0])).items():
        made.inputs.add(name=name, datatype=kserve.name_of(tensor.dtype), shape=tensor.shape)
        made.raw_input_contents.append(tensor.tobytes())
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def with_grpc(use: Callable[[Ask], Awaitable[None]], *, has_triton: bool = True, **limits: Any) -> None:
    """Calls `use` with what asks a method by its name."""

    async def run() -> None:
        app = web.Application()
        if has_triton:
            app.router.add_post("/v2/models/foodlog/infer", _triton)
        async with TestServer(app) as triton:
            url = str(triton.make_url("")).rstrip("/") if has_triton else "http://127.0.0.1:9"
            front = Front(FORM, url, url, {"": "foodlog"}, Limits(**limits), Path("/none"))
            async with TestServer(front.app()):
                server, port = await grpc_front.start(front, Limits(**limits), "127.0.0.1", 0)
                with pytest.raises(OSError, match="give another --grpc-port"):
                    await grpc_front.start(front, Limits(), "127.0.0.1", port)
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:

                    async def ask(method: str, message: Any = None, **more: Any) -> Any:
                        call = channel.unary_unary(
                            f"/{SERVICE}/{method}",
                            lambda sent: sent.SerializeToString(),
                            MESSAGES.get(f"{method}Response", MESSAGES["ServerLiveResponse"]).FromString,
                        )
                        return await call(message or MESSAGES[f"{method}Request"](), timeout=20, **more)

                    await use(ask)
                await server.stop(None)

    asyncio.run(run())


async def refused(asked: Awaitable[Any]) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await asked
    return error.value.code(), str(error.value.details())


def test_a_request_is_scored() -> None:
    row = {**request_rows(1)[0], "user_id": 250}

    async def use(ask: Ask) -> None:
        answer = await ask("ModelInfer", request(row))
        assert (answer.model_name, answer.id) == ("foodlog", "7")
        outputs = {
            out.name: kserve.tensor_of(out.name, out.datatype, list(out.shape), content)
            for out, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        count = len(row["candidate_item_id"])
        assert np.array_equal(outputs["scores"], np.full((1, 2, count), 0.25, np.float32))
        assert outputs["version"].tolist() == [[7]]
        assert (await ask("ServerLive")).live
        assert not (await ask("ModelReady", MESSAGES["ModelReadyRequest"](name="other"))).ready

    with_grpc(use)


def test_what_is_not_right_has_its_code() -> None:
    short, listed, wrong = request(), request(), request()
    short.raw_input_contents[1] = short.raw_input_contents[1][:-8]
    del listed.raw_input_contents[:]
    wrong.inputs[0].datatype = "FP64"

    async def use(ask: Ask) -> None:
        for message, told in (
            (short, "tensor ids has"),
            (listed, "3 inputs and 0 raw_input_contents"),
            (wrong, "datatype 'FP64' is none of"),
            (MESSAGES["ModelInferRequest"](model_name="foodlog"), "tensor row is missing"),
        ):
            code, details = await refused(ask("ModelInfer", message))
            assert (code, told in details) == (StatusCode.INVALID_ARGUMENT, True), details
        code, details = await refused(ask("ModelInfer", request(model_name="x")))
        assert (code, details) == (StatusCode.NOT_FOUND, "there is no model 'x'; use foodlog")
        code, _ = await refused(ask("ModelMetadata", MESSAGES["ServerLiveRequest"]()))
        assert code is StatusCode.UNIMPLEMENTED
        large = request()
        large.raw_input_contents[0] = bytes(2 << 20)
        assert (await refused(ask("ModelInfer", large)))[0] is StatusCode.RESOURCE_EXHAUSTED
        assert len((await ask("ModelInfer", request())).outputs) == 2

    with_grpc(use, max_body=1 << 20)


def test_without_triton_and_beyond_the_deadline_it_says_so() -> None:
    async def none(ask: Ask) -> None:
        assert not (await ask("ServerReady")).ready
        assert (await refused(ask("ModelInfer", request())))[0] is StatusCode.UNAVAILABLE

    with_grpc(none, has_triton=False)

    async def slow(ask: Ask) -> None:
        asked = ask("ModelInfer", request({**request_rows(1)[0], "user_id": 503}))
        assert (await refused(asked))[0] is StatusCode.DEADLINE_EXCEEDED

    with_grpc(slow, deadline_ms=100)
