"""A headless Chromium, spoken to by its DevTools protocol over two pipes: no driver is needed."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any


FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
# Its own housekeeping, which would be mistaken for the page's.
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")


class Browser:
    """One page at a time; `events` holds what the browser has told since it was opened."""

    def __init__(self, profile: Path):
        (theirs, self.write), (self.read, ours) = os.pipe(), os.pipe()
        command = [FOUND, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        # it reads descriptor 3 and writes descriptor 4
        line = f'exec "$@" 3<&{theirs} 4>&{ours} 2>/dev/null'
        self.process = subprocess.Popen(
            ["bash", "-c", line, "-", *command, "about:blank"], pass_fds=(theirs, ours)
        )
        os.close(theirs), os.close(ours)
        self.number, self.rest, self.session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.write), os.close(self.read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            chunk = os.read(self.read, 1 << 20)
            assert chunk, "the browser has ended"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int, scheme: str = "light", media: str = "") -> None:
        """Show a file at this width, and wait until it is loaded."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.next())

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        parameters = {"expression": expression, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **parameters)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def told(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]
