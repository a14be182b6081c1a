"""Serves a dataset's packages: writes Triton's repository, starts it, stands before it, starts it again.

All that it writes lies in `$MTGR_VAR/serving/<dataset>/server`: the repository, Triton's log, the log of
scores. Loopback alone, unless another address is given.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from model.serving import grpc_front, roles, triton
from model.serving.front import Front, Limits
from model.serving.lookups import LINK
from model.serving.package import Package
from model.serving.repository import ModelOptions, write_repository
from model.serving.request import RequestForm
from model.serving.scorers import DEFAULT, EngineOptions
from spark_jobs.contract import locations
from spark_jobs.contract.features import Dataset

logger = logging.getLogger(__name__)

_STEADY_S = 10.0  # a server that ends sooner is started again after a pause


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How to serve.

    Args:
        host: Address of the front.
        port: Its port; Triton takes free ones of its own.
        instances: Processes that score, of each role.
        limits: What the front lets pass.
        is_logged: Whether scores are logged.
        engine: How a GPU computes.
        grpc_port: Where gRPC is answered, on the same address; None: nowhere.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    instances: int = 1
    limits: Limits = field(default_factory=Limits)
    is_logged: bool = True
    engine: EngineOptions = DEFAULT
    grpc_port: int | None = None


def folder_of(dataset: str) -> Path:
    """Where a server of the dataset writes."""
    return locations.serving() / dataset / "server"


def model_names(dataset: str) -> dict[str, str]:
    """By path behind `/score`, the model that is asked there: the shadow where there is one."""
    names = {"": dataset}
    if roles.version_in(dataset, roles.SHADOW) is not None:
        names["shadow"] = f"{dataset}-shadow"
    return names


def repository(dataset: str, folder: Path, options: ServerOptions) -> None:
    """Writes the model repository of a dataset's roles, for the server here or for a Triton elsewhere."""
    write_repository(folder, {
        name: ModelOptions(
            link=roles.link(dataset, role or roles.CURRENT),
            log=folder_of(dataset) / "scores" / name if options.is_logged else None,
            instances=options.instances,
            max_batch=options.limits.max_batch,
            batch_tokens=options.limits.batch_tokens,
            engine=options.engine,
        )
        for role, name in model_names(dataset).items()
    })  # fmt: skip


async def serve(dataset: Dataset, options: ServerOptions, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        dataset: Whose packages.
        options: How.
        ready: Told the URL once the model can be asked.

    Raises:
        PackageError: `current` names no package.
        TritonError: Triton is not installed, or does not start.
        OSError: The port is taken.
    """
    folder = folder_of(dataset.name)
    models = model_names(dataset.name)
    repository(dataset.name, folder / "models", options)
    triton.write_backends(folder / "backends")
    package = Package.load(roles.link(dataset.name, roles.CURRENT))
    form = RequestForm(package.dataset, package.config.model.max_static)
    port = free_ports()
    front = Front(
        form,
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{port + 1}/metrics",
        models,
        dataclasses.replace(options.limits, calls=options.instances),
        roles.link(dataset.name, LINK),
    )
    runner = web.AppRunner(front.app(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
    await site.start()
    ended = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, ended.set)
    by_grpc = None
    if options.grpc_port is not None:
        by_grpc, grpc_port = await grpc_front.start(front, options.limits, options.host, options.grpc_port)
        logger.info("gRPC is answered at %s:%d", options.host, grpc_port)
    is_ready = asyncio.Event()
    keeper = asyncio.create_task(_keep(folder, port, is_ready))
    try:
        url = f"http://{options.host}:{runner.addresses[0][1]}"
        await _until_ready(url, ended, keeper)
        if not ended.is_set() and not keeper.done():
            is_ready.set()
            ready(url)
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({waiting, keeper}, return_when=asyncio.FIRST_COMPLETED)
        if keeper.done():
            keeper.result()
    finally:
        if by_grpc is not None:
            await by_grpc.stop(options.limits.deadline_ms / 1000)
        await runner.cleanup()  # first what asks, then what is asked
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def _keep(folder: Path, port: int, is_ready: asyncio.Event) -> None:
    """Runs Triton, and starts it again when it ends.

    Raises:
        TritonError: It has ended before it was ready for the first time.
    """
    log = folder / "triton.log"
    log.unlink(missing_ok=True)
    while True:
        server = await triton.start(folder / "models", folder / "backends", log, port)
        started = asyncio.get_running_loop().time()
        try:
            code = await server.wait()
        finally:
            await triton.stop(server)
        if not is_ready.is_set():
            raise triton.TritonError(f"Triton has ended before it was ready: {triton.reason(log)}")
        logger.error("Triton has ended with %d and is started again: %s", code, triton.reason(log))
        if asyncio.get_running_loop().time() - started < _STEADY_S:
            await asyncio.sleep(1)


async def _until_ready(url: str, ended: asyncio.Event, keeper: asyncio.Task[None]) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        while not ended.is_set() and not keeper.done():
            async with session.get(f"{url}/v2/health/ready") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)


def free_ports() -> int:
    """A free port whose neighbour is free, too."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                next_one.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
