"""A headless Chromium, driven through its DevTools pipe by the standard library alone."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-zygote")
PATIENCE = 60  # seconds for an answer


def find_browser() -> str | None:
    """Of this machine, the one that SPECDEC_BROWSER names first."""
    return next(filter(None, map(shutil.which, (os.environ.get("SPECDEC_BROWSER", ""), *NAMES))), None)


class Browser:
    """One page. Use as a context manager.

    Args:
        profile: an empty folder.

    Attributes:
        complaints: what the page has written to the console, and errors.
        fetched: addresses of what it has asked for.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 900):
        (theirs, self._to), (self._from, ours) = os.pipe(), os.pipe()
        pipe = f'exec "$0" "$@" 3<&{theirs} 4>&{ours}'  # Chromium reads from 3 and writes to 4
        command = [str(find_browser()), *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", pipe, *command], pass_fds=(theirs, ours), stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(ours)
        self._numbers, self._unread, self._session = itertools.count(1), b"", ""
        self.complaints: list[str] = []
        self.fetched: list[str] = []
        page = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        os.write(self._to, b'{"id": 0, "method": "Browser.close"}\0')
        while select.select([self._from], [], [], PATIENCE)[0] and os.read(self._from, 1 << 16):
            pass  # until its end of the pipe is closed
        os.close(self._to)
        os.close(self._from)
        self._process.wait(PATIENCE)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        number = next(self._numbers)
        call: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            call["sessionId"] = self._session
        os.write(self._to, json.dumps(call).encode() + b"\0")
        while (message := self._read()).get("id") != number:
            self._hear(message)
        assert "error" not in message, message
        found: dict[str, Any] = message["result"]
        return found

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            assert select.select([self._from], [], [], PATIENCE)[0], "the browser does not answer"
            self._unread += os.read(self._from, 1 << 16)
        line, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _hear(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(params))
        if method == "Network.requestWillBeSent":
            self.fetched.append(params["request"]["url"])

    def open(self, file: Path, **media: str) -> None:
        """Load a page; `media` as in `prefers_color_scheme="dark"`."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=file.resolve().as_uri())
        while self.run("document.readyState") != "complete" or self.run("location.protocol") != "file:":
            pass

    def run(self, script: str) -> Any:
        """The value of an expression."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as a hand would."""
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def click(self, selector: str, across: float = 0.5) -> None:
        """The left button on an element, that far across it."""
        box = self.run(
            f"(({{x, y, width, height}}) => [x, y, width, height])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        place = {"x": box[0] + across * box[2], "y": box[1] + box[3] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, **place)

    def picture(self, file: Path) -> None:
        """A png of the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))
