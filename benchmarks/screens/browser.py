"""A headless Chromium, driven by its own protocol: open a page, click, wait for words, take a picture.

Needs a Chromium on the machine (`apt-get install chromium`, or a Chrome whose path INTERLOCK_CHROMIUM names).
No driver and no download: the protocol is JSON over a WebSocket (https://chromedevtools.github.io/devtools-protocol).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import connect

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_START_S = 60.0
_ANSWER_S = 60.0
_POLL_S = 0.25


class BrowserFailed(RuntimeError):
    """No browser, or a page that did not show what was expected; the message says which."""


def find_chromium() -> str:
    """The browser's path. Raises `BrowserFailed` where there is none."""
    for name in (os.environ.get("INTERLOCK_CHROMIUM", ""), *_NAMES):
        if name and (path := shutil.which(name)):
            return path
    raise BrowserFailed("no Chromium was found. Next: install chromium, or name it with INTERLOCK_CHROMIUM")


class Browser:
    """One page of one headless browser; a context manager that ends it."""

    def __init__(self, *, width: int = 1440, height: int = 1000) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="interlock-screens-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [
                find_chromium(),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--remote-debugging-port=0", "--remote-allow-origins=*"),
                *(f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}"),
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._number = 0
        self._socket = connect(self._page_address(), max_size=None, open_timeout=_START_S)
        self._call("Page.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._call("Browser.close")
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def open(self, url: str, *, shows: str = "", wait_s: float = 45) -> None:
        """Go to a page and wait until it shows some words."""
        self._call("Page.navigate", url=url)
        self.await_words(shows, wait_s=wait_s)

    def await_words(self, words: str, *, wait_s: float = 45) -> None:
        """Wait until the page shows these words. Raises `BrowserFailed` with what it shows instead."""
        text, deadline = "", time.monotonic() + wait_s
        while time.monotonic() < deadline:
            text = str(self.evaluate("document.body ? document.body.innerText : ''"))
            if words and words in text:
                return
            time.sleep(_POLL_S)
        if words:
            raise BrowserFailed(f"the page never showed {words!r}; it shows: {text[:1500]}")

    def click(self, text: str, *, tag: str = "button") -> None:
        """Click the first element of a kind with this text. Raises `BrowserFailed` where there is none."""
        script = (
            f"(() => {{ const all = [...document.querySelectorAll({json.dumps(tag)})];"
            f" const it = all.find(one => one.innerText.trim() === {json.dumps(text)} && one.offsetParent);"
            " if (it) it.click(); return Boolean(it); })()"
        )
        if not self.evaluate(script):
            raise BrowserFailed(f"the page has no {tag} {text!r}")

    def evaluate(self, script: str) -> Any:
        """What a script returns, as plain values."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer.get("result", {}).get("value")

    def picture(self, path: Path, *, settle_s: float = 4) -> None:
        """Write what the page shows as PNG, once animations have had a moment."""
        time.sleep(settle_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _page_address(self) -> str:
        """The WebSocket of the first page, as the browser tells it once it has started."""
        told, deadline = Path(self._folder.name) / "DevToolsActivePort", time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError, ValueError, StopIteration):
                port = int(told.read_text().splitlines()[0])
                with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                    pages = json.load(answer)
                return str(next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"))
            time.sleep(_POLL_S)
        raise BrowserFailed(f"Chromium did not start (status {self._process.poll()})")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=_ANSWER_S))
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserFailed(f"{method}: {answer['error']}")
                return answer.get("result", {})
