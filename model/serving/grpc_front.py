"""The same model by gRPC: KServe's protocol, version 2, with the limits and batches of the front.

`ModelInfer` takes the three tensors as `raw_input_contents`; `ServerLive`, `ServerReady` and `ModelReady` are
answered, too. Triton's own gRPC port stays closed: it takes a message of 2 GB and knows no limit of requests
under way.

| code | when |
|---|---|
| `INVALID_ARGUMENT` | what HTTP answers with 400 |
| `NOT_FOUND` | no such model |
| `RESOURCE_EXHAUSTED` | too large, or too many requests are under way |
| `DEADLINE_EXCEEDED` | no answer within the deadline, the caller's or the server's |
| `UNAVAILABLE` | Triton is not ready |
| `UNIMPLEMENTED` | any other method |
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import grpc  # type: ignore[import-untyped]
import numpy as np
from aiohttp import web
from grpc import StatusCode

from model.data.stored import Array
from model.serving import kserve
from model.serving.front import Front, Limits
from model.serving.inference_proto import MESSAGES, SERVICE
from model.serving.request import RequestError

_PATH = "grpc"  # in the metrics
_HTTP = {
    StatusCode.OK: 200,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
_Handler = Callable[[Any, Any], Awaitable[Any]]


async def start(front: Front, limits: Limits, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Listens; returns the server and its port.

    Raises:
        OSError: The port is taken.
    """
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", limits.max_body), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=limits.max_waiting,
    )
    methods = _Methods(front, limits)
    handlers: dict[str, _Handler] = {
        "ServerLive": methods.live,
        "ServerReady": methods.ready,
        "ModelReady": methods.model_ready,
        "ModelInfer": methods.infer,
    }
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                SERVICE,
                {
                    name: grpc.unary_unary_rpc_method_handler(
                        handler,
                        MESSAGES[f"{name}Request"].FromString,
                        MESSAGES[f"{name}Response"].SerializeToString,
                    )
                    for name, handler in handlers.items()
                },
            )
        ]
    )
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"gRPC cannot listen at {host}:{port}: {error}; give another --grpc-port") from error
    await server.start()
    return server, bound


class _Methods:
    """What is answered to."""

    def __init__(self, front: Front, limits: Limits) -> None:
        self._front, self._limits = front, limits

    async def live(self, request: Any, context: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def ready(self, request: Any, context: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=await self._front.is_ready())

    async def model_ready(self, request: Any, context: Any) -> Any:
        is_known = request.name in self._front.models
        return MESSAGES["ModelReadyResponse"](ready=is_known and await self._front.is_ready())

    async def infer(self, request: Any, context: Any) -> Any:
        start = time.perf_counter()
        try:
            answer, code, told = await self._scored(request, context), StatusCode.OK, ""
        except (RequestError, kserve.ProtocolError) as error:
            answer, code, told = None, StatusCode.INVALID_ARGUMENT, str(error)
        except web.HTTPBadRequest as error:
            answer, code, told = None, StatusCode.INVALID_ARGUMENT, str(error.text)
        except web.HTTPNotFound as error:
            answer, code, told = None, StatusCode.NOT_FOUND, str(error.text)
        except TimeoutError:
            answer, code, told = None, StatusCode.DEADLINE_EXCEEDED, "no answer within the deadline"
        except (web.HTTPServiceUnavailable, aiohttp.ClientError):
            answer, code, told = None, StatusCode.UNAVAILABLE, "the model is not ready; try again"
        self._front.answers.count(_PATH, _HTTP[code], time.perf_counter() - start)
        if answer is None:
            await context.abort(code, told)
        return answer

    async def _scored(self, request: Any, context: Any) -> Any:
        if request.model_name not in self._front.models:
            raise web.HTTPNotFound(
                text=f"there is no model {request.model_name!r}; use {', '.join(self._front.models)}"
            )
        tensors = _tensors(request)
        self._front.form.check(tensors)  # before it takes a place in a batch
        left = context.time_remaining()
        longest = self._limits.deadline_ms / 1000
        async with asyncio.timeout(longest if left is None else min(left, longest)):
            scores, version = await self._front.asked(request.model_name, tensors)
        answer = MESSAGES["ModelInferResponse"](
            model_name=request.model_name, model_version="1", id=request.id
        )
        for name, tensor in (("scores", scores[None]), ("version", np.array([[version]], np.int64))):
            answer.outputs.add(name=name, datatype=kserve.name_of(tensor.dtype), shape=tensor.shape)
            answer.raw_output_contents.append(np.ascontiguousarray(tensor).tobytes())
        return answer


def _tensors(request: Any) -> dict[str, Array]:
    """The tensors of a request.

    Raises:
        ProtocolError: They are not raw, or not of the sizes that are said.
    """
    if len(request.raw_input_contents) != len(request.inputs):
        raise kserve.ProtocolError(
            f"there are {len(request.inputs)} inputs and {len(request.raw_input_contents)} "
            "raw_input_contents: send each tensor raw"
        )
    return {
        described.name: kserve.tensor_of(described.name, described.datatype, list(described.shape), content)
        for described, content in zip(request.inputs, request.raw_input_contents, strict=True)
    }
