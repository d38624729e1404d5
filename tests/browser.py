"""A headless Chromium, driven over the DevTools protocol by a pair of pipes: no driver and no package."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 600  # seconds for one answer: the machine may be slow
INHERIT = (  # becomes the command, with its pipes as the numbers 3 and 4
    "import fcntl, os, sys; read, write = (fcntl.fcntl(int(one), fcntl.F_DUPFD_CLOEXEC, 10) for one in sys.argv[1:3]); "
    "os.dup2(read, 3); os.dup2(write, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def chromium():
    """The path of a Chromium, or None. $CHROMIUM names another one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. `errors` collects what the page logs as an error, and its uncaught exceptions."""

    def __init__(self, folder):
        ours, theirs = os.pipe(), os.pipe()  # commands, answers: Chromium reads 3 and writes 4
        command = [
            chromium(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-sandbox",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
            "--hide-scrollbars",
        ]  # fmt: skip
        start = [sys.executable, "-S", "-c", INHERIT, str(ours[0]), str(theirs[1]), *command]
        self.process = subprocess.Popen(start, pass_fds=(ours[0], theirs[1]), stderr=subprocess.DEVNULL)
        os.close(ours[0])
        os.close(theirs[1])
        self._write, self._read, self._rest, self._count, self._session = ours[1], theirs[0], b"", 0, None
        self.events, self.errors = [], []
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self):
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """The answer to one command of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise TimeoutError(f"Chromium did not answer in {PATIENCE} s")
            piece = os.read(self._read, 2**20)
            if not piece:
                raise RuntimeError(f"Chromium ended with status {self.process.wait()}")
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        method, what = event["method"], event.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.errors.append(what["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.errors.append(what["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "assert"):
            self.errors.append(str(what["args"]))

    def open(self, address, storage=True):
        """Loads a page anew and waits until it is drawn. Without storage it remembers nothing of earlier visits."""
        if not storage:
            self("Storage.clearDataForOrigin", origin="*", storageTypes="all")
        for url in ("about:blank", address):  # from a page to itself only the part after # would change
            self.events.clear()
            self("Page.navigate", url=url)
            while "Page.loadEventFired" not in self.events:
                self._note(self._next())
        self.settle()

    def settle(self):
        """Waits until the page has drawn twice more."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def run(self, code):
        """The value of a JavaScript expression, a promise waited for."""
        answer = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def screen(self, width, height, dark=False):
        """The size of the window, a phone's below 500 pixels, and the colours the user prefers."""
        self(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.settle()

    def press(self, key, times=1):
        """Presses a key, as "Tab" or "ArrowDown"."""
        codes = {"Tab": 9, "ArrowUp": 38, "ArrowDown": 40, "ArrowRight": 39, "ArrowLeft": 37, "End": 35}
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])
        self.settle()

    def shoot(self, path):
        """The whole page as a PNG."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self):
        """Ends Chromium."""
        try:
            self._session = None
            self("Browser.close")
            self.process.wait(20)
        except (RuntimeError, TimeoutError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self._write)
        os.close(self._read)
