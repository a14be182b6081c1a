"""Chromium, to look at pages that scripts draw: `with browser(folder) as page`."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_COLOURS = 48  # a page has few; with these a picture is a tenth of its size


class Page:
    """One page of a browser.

    Args:
        connection: To the page, by Chromium's DevTools protocol.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._ids = connection, itertools.count(1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol."""
        number = next(self._ids)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, url: str, *texts: str, seconds: float = 120) -> str:
        """Opens a page, waits until all the texts stand on it, and returns what stands there."""
        self.call("Page.navigate", url=url)
        end, said = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            time.sleep(1)
            value = self.call("Runtime.evaluate", expression="document.body && document.body.innerText")
            said = value["result"].get("value") or ""
            if all(text in said for text in texts):
                time.sleep(2)  # what is drawn moves into its place
                return said
        raise AssertionError(f"{url} does not show {texts} but: {said}")

    def picture(self, path: Path, width: int, height: int) -> None:
        """Writes the upper left part of the page as a small PNG."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


@contextlib.contextmanager
def browser(folder: Path, width: int, height: int) -> Iterator[Page]:
    """A browser of its own, with nothing kept but in `folder`."""
    assert CHROMIUM, "Chromium is not installed: apt-get install chromium"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
    ]
    options += [f"--user-data-dir={folder}", f"--window-size={width},{height}"]
    with subprocess.Popen([CHROMIUM, *options, "about:blank"], stderr=subprocess.DEVNULL) as process:
        try:
            said, end = folder / "DevToolsActivePort", time.monotonic() + 120
            while not said.exists() or not said.read_text().strip():
                assert process.poll() is None, "Chromium has ended"
                assert time.monotonic() < end, "Chromium does not start"
                time.sleep(0.2)
            pages = f"http://127.0.0.1:{said.read_text().split()[0]}/json"
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(pages) as answer:
                (target,) = (one for one in json.load(answer) if one["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
                page = Page(connection)
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                page.call("Emulation.setDeviceMetricsOverride", **size)
                yield page
        finally:
            process.terminate()
