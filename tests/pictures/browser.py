"""A real Chromium without a window, by its DevTools protocol over a pipe: no port, no driver."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 60.0
# What a page may not do is an event of the page.
WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


class Browser:
    """One browser with one page.

    Attributes:
        errors: exceptions, and what stands in the console as error or warning.
        requests: the addresses that the page asked for.
    """

    def __init__(self, profile: Path) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # It reads from 3 and writes to 4.
        self._process = subprocess.Popen(
            [
                "bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "bash",
                "chromium", "--headless=new", "--remote-debugging-pipe", "--no-sandbox",
                f"--user-data-dir={profile}", "--no-first-run", "--disable-gpu",
                "--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "about:blank",
            ],
            pass_fds=(to_read, from_write), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(from_write)
        self._in, self._out = to_write, from_read
        self._buffer = b""
        self._number = 0
        self._session = ""
        self._events: list[dict[str, Any]] = []
        page = next(
            one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page"
        )
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)

    def size(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Of the window, and the theme that its user prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, page: Path) -> float:
        """Open a report; the seconds until it can be used."""
        self.errors.clear()
        self.requests.clear()
        began = time.monotonic()
        self._call("Page.navigate", url=page.resolve().as_uri())
        self.until("document.documentElement?.dataset?.ready")
        return time.monotonic() - began

    def show(self, page: Path) -> None:
        """Open a page without a script."""
        self.errors.clear()
        self.requests.clear()
        self._call("Page.navigate", url=page.resolve().as_uri())
        self.until(f"location.href === {json.dumps(page.resolve().as_uri())}")
        self.until("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        done = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str) -> Any:
        """Its value, once it is true."""
        deadline = time.monotonic() + SECONDS
        while not (value := self.ask(expression)):
            assert time.monotonic() < deadline, f"{expression} does not come true: {self.errors}"
            time.sleep(0.02)
        return value

    def key(self, key: str) -> None:
        """Press a key. Then what it changed is drawn."""
        text = key if len(key) == 1 else ""
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.drawn()

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
        self.drawn()

    def drawn(self) -> None:
        """Until two frames later."""
        self.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def picture(self, target: Path, whole: bool = True) -> Path:
        """A screenshot as PNG, of the whole page or of what is seen."""
        done = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole,
                          **self._clip(whole))  # fmt: skip
        target.write_bytes(base64.b64decode(done["data"]))
        return target

    def print_pdf(self) -> bytes:
        return base64.b64decode(self._call("Page.printToPDF", printBackground=True)["data"])

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "scale": 1, "width": size["width"],
                         "height": size["height"]}}  # fmt: skip

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._in, data) :]
        reply = self._read(lambda one: one.get("id") == number)
        assert "error" not in reply, (method, reply["error"])
        result: dict[str, Any] = reply["result"]
        return result

    def _read(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while True:
            while b"\0" in self._buffer:
                text, _, self._buffer = self._buffer.partition(b"\0")
                message: dict[str, Any] = json.loads(text)
                if wanted(message):
                    return message
                self._note(message)
            left = deadline - time.monotonic()
            assert select.select([self._out], [], [], max(left, 0))[0], "Chromium is silent"
            data = os.read(self._out, 1 << 20)
            assert data, f"Chromium has ended: {self._process.poll()}"
            self._buffer += data

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"].get("exception", params)))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str([one.get("value") for one in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
