"""A headless Chromium to look at pages with, driven through its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # that an answer may take on a busy machine


class Browser:
    """Chromium without a window, a network and a profile of before."""

    def __init__(self, binary: str, profile: Path):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4, messages ending with a zero byte.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--mute-audio"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, binary, *switches, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._unread = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Give a command and wait for its result; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, session: str, method: str) -> None:
        """Wait for an event of a session; it may have come already."""
        while not any(event.get("method") == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._receive())

    def close(self) -> None:
        """End it."""
        self.send("Browser.close")
        self._process.wait(SECONDS)
        os.close(self._commands)
        os.close(self._answers)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(end - time.monotonic(), 0))
            chunk = os.read(self._answers, 1 << 20) if ready else b""
            assert chunk, f"Chromium ({self._process.args[3]}) gives no answer"
            self._unread += chunk
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)


class Page:
    """A file opened in a tab of its own, without a network."""

    def __init__(self, browser: Browser, path: Path, width: int, height: int = 900, dark: bool = False):
        self._browser = browser
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._target = target
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")
        self._send(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])
        self._send("Page.navigate", url=path.absolute().as_uri())
        browser.wait_for(self._session, "Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        answer = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str, share: float = 0.5) -> None:
        """Click with the mouse into an element, at a share of its width."""
        box = self.evaluate(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); return e.getBoundingClientRect() }})"
            f"(document.querySelector({json.dumps(selector)})).toJSON()"
        )
        where = {"x": box["left"] + share * box["width"], "y": box["top"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def complaints(self) -> list[dict[str, Any]]:
        """What was written to the console, exceptions, and log entries such as violations of a policy."""
        self._send("Runtime.evaluate", expression="0")  # whatever came before it is there then
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self._events() if event["method"] in methods]

    def requests(self) -> list[str]:
        """The addresses that were asked for, without data in the page itself."""
        sent = [event for event in self._events() if event["method"] == "Network.requestWillBeSent"]
        addresses = [event["params"]["request"]["url"] for event in sent]
        return [address for address in addresses if not address.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """Save the whole page as a PNG."""
        image = self._send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))

    def close(self) -> None:
        """Close the tab."""
        self._browser.send("Target.closeTarget", targetId=self._target)

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **params)

    def _events(self) -> list[dict[str, Any]]:
        return [event for event in self._browser.events if event.get("sessionId") == self._session]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    if binary is None:
        pytest.fail(f"these tests need a browser, one of {', '.join(BINARIES)}: apt-get install chromium")
    browser = Browser(binary, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a file at a width in CSS pixels, and closes it after the test."""
    pages: list[Page] = []

    def open_page(path: Path, width: int, **options: Any) -> Page:
        pages.append(Page(browser, path, width, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()
