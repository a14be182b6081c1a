"""What asks Triton: scores of a batch, whether a model is ready, its metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Self

import aiohttp
from aiohttp import web

from model.data.stored import Array
from model.serving import kserve

_CODES = {400: web.HTTPBadRequest, 404: web.HTTPNotFound, 503: web.HTTPServiceUnavailable}
_SHORT = aiohttp.ClientTimeout(2)


class TritonClient:
    """Connections to one Triton; an asynchronous context, in which it can be asked.

    Args:
        url: Of Triton.
        metrics_url: Of its metrics.
    """

    def __init__(self, url: str, metrics_url: str) -> None:
        self._url, self._metrics_url = url, metrics_url

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *of_error: object) -> None:
        await self._session.close()

    async def infer(self, model: str, tensors: Mapping[str, Array], longest_s: float) -> tuple[Array, int]:
        """Scores of requests end to end, float32 `[2, C]`, and the version that they are of.

        Raises:
            web.HTTPException: Triton has refused them; with its code and message.
            aiohttp.ClientError: It does not answer.
            TimeoutError: Not in time.
        """
        body, length = kserve.encode(tensors)
        async with self._session.post(
            f"{self._url}/v2/models/{model}/infer",
            data=body,
            headers={kserve.LENGTH_HEADER: str(length)},
            timeout=aiohttp.ClientTimeout(longest_s),
        ) as response:
            answer = await response.read()
            if response.status != 200:
                raise _refused(response.status, answer)
            outputs, _ = kserve.decode(answer, response.headers.get(kserve.LENGTH_HEADER, ""), "outputs")
        return outputs["scores"][0], int(outputs["version"][0, 0])

    async def is_ready(self, model: str) -> bool:
        """Whether a model can be asked."""
        try:
            async with self._session.get(f"{self._url}/v2/models/{model}/ready", timeout=_SHORT) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def metrics(self) -> str:
        """What Prometheus reads of it."""
        try:
            async with self._session.get(self._metrics_url, timeout=_SHORT) as response:
                return await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"# Triton's metrics are not there: {error}\n"


def _refused(status: int, answer: bytes) -> web.HTTPException:
    """What Triton said, as the error to answer with."""
    try:
        message = str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        message = answer[:200].decode(errors="replace")
    return _CODES.get(status, web.HTTPInternalServerError)(text=message)
