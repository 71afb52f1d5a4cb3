"""A real JupyterLab (and Notebook 7) on a loopback port, and pages of it in headless Chromium.

One server serves both front ends. `Lab` is the server and its folder; `NotebookPage` is one notebook in one tab and
has the few things that a person does there. Screenshots go to the folder of test artifacts.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

import nbformat
from playwright.sync_api import Browser, Locator, Page, Playwright, Response, expect

Theme = Literal["light", "dark"]

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, dict[str, Any]] = {
    # all cells are in the page, also those that are scrolled away
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "docmanager-extension/plugin": {"autosave": False},
}
CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str | None:
    """The path of the system's Chromium; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def launch(playwright: Playwright) -> Browser:
    """The system's Chromium; Playwright's own is neither needed nor downloaded."""
    return playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM)


class Lab:
    """A server without a token, on a free loopback port, with settings and data in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "notebooks"
        self.folder.mkdir()
        self._settings = home / "settings"
        self._write_settings(SETTINGS)
        self._write_page_config(home / "config")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        env = os.environ | {
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(self._settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"),
        }
        options = [
            "--no-browser",
            "--allow-root",
            "--IdentityProvider.token=",
            "--LabApp.extension_manager=readonly",  # the other one asks the internet
            "--ServerApp.disable_check_xsrf=True",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.folder}",
        ]
        self._log = home / "server.log"
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "jupyterlab", *options]
            self._server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait_until_up()

    def set_theme(self, theme: Theme) -> None:
        """The theme of pages that are opened from now on."""
        name = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}[theme]
        self._write_settings({"apputils-extension/themes": {"theme": name}})

    def open(
        self, browser: Browser, name: str, front_end: Literal["lab", "notebook"] = "lab", width: int = 1200
    ) -> "NotebookPage":
        """Open a notebook that lies in the server's folder, in a tab of its own, so many pixels wide."""
        page = browser.new_context(viewport={"width": width, "height": 1300}).new_page()
        path = {"lab": f"lab/tree/{name}?reset", "notebook": f"notebooks/{name}"}[front_end]
        page.goto(f"{self.url}/{path}")
        return NotebookPage(page, self.folder / name)

    def write(self, name: str, *cells: str) -> Path:
        """A notebook of code cells, in the server's folder."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, self.folder / name)
        return self.folder / name

    def end_kernels(self) -> None:
        """End the kernels of all notebooks."""
        for kernel in json.loads(self._request("GET", "api/kernels")):
            self._request("DELETE", f"api/kernels/{kernel['id']}")

    def close(self) -> None:
        """End the kernels and the server."""
        self.end_kernels()
        self._server.terminate()
        self._server.wait(timeout=30)

    def _request(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
            return body

    def _wait_until_up(self, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._request("GET", "api/status")
                return
            except (urllib.error.URLError, ConnectionError) as error:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"JupyterLab did not start:\n{self._log.read_text()}") from error
                time.sleep(0.1)

    def _write_settings(self, settings: dict[str, dict[str, Any]]) -> None:
        for plugin, values in settings.items():
            path = self._settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def _write_page_config(self, config: Path) -> None:
        """No question about news: it stands over the page, and its answer comes from the internet."""
        path = config / "labconfig" / "page_config.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))


class NotebookPage:
    """One notebook in one tab."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.path = path
        expect(self.cells.first).to_be_visible(timeout=60_000)

    @property
    def cells(self) -> Locator:
        """All cells, in order."""
        return self.page.locator(".jp-Notebook .jp-Cell")

    def output(self, index: int) -> Locator:
        """The output area of a cell (counts from 0)."""
        return self.cells.nth(index).locator(".jp-Cell-outputArea")

    def prompt(self, index: int) -> Locator:
        """The `[1]:` beside a cell, `[*]:` while it runs."""
        return self.cells.nth(index).locator(".jp-InputPrompt").first

    def start(self, index: int) -> None:
        """Run a cell with the keyboard, as a person does, and return when it is on its way."""
        before = self.prompt(index).inner_text()
        deadline = time.monotonic() + 60
        # while the kernel is connecting, JupyterLab drops the keys and may empty the prompt
        while self.prompt(index).inner_text() in (before, "[ ]:"):
            assert time.monotonic() < deadline, "the cell did not start"
            self.cells.nth(index).locator(".cm-content").click()
            self.page.keyboard.press("Control+Enter")
            self.page.wait_for_timeout(300)

    def wait(self, index: int, timeout: float = 60) -> None:
        """Wait until a cell has run (seconds)."""
        expect(self.prompt(index)).to_have_text(re.compile(r"\[\d+\]:"), timeout=timeout * 1000)

    def run(self, index: int, timeout: float = 60) -> None:
        """Run a cell to its end (seconds)."""
        self.start(index)
        self.wait(index, timeout)

    def interrupt(self) -> None:
        """The interrupt of the kernel menu, by its keys."""
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("i")
        self.page.keyboard.press("i")

    def save(self) -> nbformat.NotebookNode:
        """Save by the keyboard, and read what lies on the disk then."""
        with self.page.expect_response(self._is_save, timeout=30_000):
            self.page.keyboard.press("Control+s")
        return nbformat.read(self.path, as_version=4)

    def _is_save(self, response: Response) -> bool:
        """The server's answer to a save, which it gives when the file is written."""
        return response.request.method == "PUT" and f"/api/contents/{self.path.name}?" in response.url

    def reload(self) -> None:
        """Load the page again, as after a closed lid; what was not saved is lost."""
        self.page.reload()
        expect(self.cells.first).to_be_visible(timeout=60_000)

    def screenshot(self, name: str, cell: int | None = None) -> Path:
        """Keep a picture of the tab, or of one cell, among the artifacts."""
        path = artifacts() / f"{name}.png"
        target = self.page if cell is None else self.cells.nth(cell)
        target.screenshot(path=path)
        return path

    def close(self) -> None:
        """Close the tab."""
        self.page.context.close()


def artifacts() -> Path:
    """The folder for what a person may want to look at after the tests; git ignores it."""
    folder = Path(os.environ.get("QUIK_NB_ARTIFACTS", ROOT / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
