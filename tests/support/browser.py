"""Headless Chromium, driven over HTTP by chromedriver (the WebDriver protocol)."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.polling import wait_until
from tests.support.processes import TIMEOUT, free_port

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id in the protocol
OPTIONS = (
    "--headless",
    "--no-sandbox",  # which Chromium refuses to have as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1600",
    "--host-resolver-rules=MAP heroes.example 127.0.0.1, MAP other.example ~NOTFOUND",
)


class Browser:
    """A browser with one page."""

    def __init__(self, session: httpx.Client) -> None:
        self.session = session
        self.found_errors: list[str] = []

    def command(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a command of the protocol, and return its value."""
        response = self.session.get(path) if body is None else self.session.post(path, json=body)
        assert response.is_success, response.text
        return response.json()["value"]

    def open(self, url: str) -> None:
        """Load a page, and forget what was logged before."""
        self.requested_urls()
        self.errors()
        self.found_errors.clear()
        self.command("url", {"url": url})

    def current_url(self) -> str:
        """Return the address of the page, without a fragment."""
        address: str = self.command("url")
        return address.partition("#")[0]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script, as a function with these arguments, and return what it returns."""
        return self.command("execute/sync", {"script": script, "args": arguments})

    def texts(self, selector: str) -> list[str]:
        """Wait until elements match, and return their texts."""
        script = "return [...document.querySelectorAll(arguments[0])].map(element => element.innerText.trim())"
        wait_until(lambda: self.run(script, selector), lambda: f"for {selector}")
        # Without the characters that let a long path wrap.
        return [text.replace("\N{ZERO WIDTH SPACE}", "") for text in self.run(script, selector)]

    def text(self, selector: str) -> str:
        """Wait until an element matches, and return its text."""
        return self.texts(selector)[0]

    def click(self, selector: str) -> None:
        """Wait until an element matches, and click on it."""
        self.texts(selector)
        self.run("document.querySelector(arguments[0]).click()", selector)

    def type(self, selector: str, text: str) -> None:
        """Wait until a field matches, and type into it."""
        self.texts(selector)
        field = self.command("element", {"using": "css selector", "value": selector})[ELEMENT]
        self.command(f"element/{field}/value", {"text": text})

    def errors(self) -> list[str]:
        """Return what the console has since the page was opened, violations of its policy among it."""
        self.found_errors += [entry["message"] for entry in self.command("se/log", {"type": "browser"})]
        return self.found_errors

    def requested_urls(self) -> set[str]:
        """Return the addresses that were requested since this was last called."""
        messages = (
            json.loads(entry["message"])["message"] for entry in self.command("se/log", {"type": "performance"})
        )
        return {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }


def find(*names: str) -> str:
    """Find an executable."""
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, f"{names[0]} is missing: run make test-browser, which says how to install it"
    return found


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Run Chromium with an empty profile."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        process = subprocess.Popen(
            (find("chromedriver"), f"--port={port}"), stdout=subprocess.DEVNULL, start_new_session=True
        )
        options = {
            "binary": find("chromium", "chromium-browser", "google-chrome"),
            "args": [*OPTIONS, f"--user-data-dir={Path(folder)}"],
        }
        logs = {"browser": "ALL", "performance": "ALL"}
        capabilities = {
            "browserName": "chrome",
            "timeouts": {"pageLoad": 20_000},
            "goog:chromeOptions": options,
            "goog:loggingPrefs": logs,
        }
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT) as client:
                wait_until(lambda: is_ready(client, process))
                created = client.post("/session", json={"capabilities": {"alwaysMatch": capabilities}})
                assert created.is_success, created.text
                session = f"/session/{created.json()['value']['sessionId']}"
                client.base_url = client.base_url.join(session)
                try:
                    yield Browser(client)
                finally:
                    client.delete("")  # which ends Chromium
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # Chromium too, if it still runs
            process.wait(TIMEOUT)


def is_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    """Tell whether chromedriver accepts sessions."""
    assert process.poll() is None, "chromedriver has exited"
    try:
        return bool(client.get("/status").json()["value"]["ready"])
    except httpx.TransportError:
        return False
