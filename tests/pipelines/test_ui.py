"""A user of the UI gets from the links to a run's pictures, and from there to the version and its alias."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from mlflow import MlflowClient
from PIL import Image

from pipelines import demo as demo_module
from pipelines import ui
from pipelines.promote import promote
from safemax.errors import InputError
from tests.pipelines.test_end_to_end import SMALL
from tests.pipelines.tracking.test_server import OPEN
from tests.support.mlflow_servers import free_port

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1600,1250"),
)
PATIENCE = 90  # seconds for a page on a busy machine
SHOTS = "SAFEMAX_SCREENSHOTS"  # a folder: the README's pictures are made there
ROOT = Path(__file__).parents[2]


def test_links_lead_to_experiments_and_models_in_the_training_mode(mlflow_store: MlflowClient) -> None:
    mlflow_store.create_experiment("tiny-ddpm")
    mlflow_store.create_registered_model("tiny-ddpm")
    assert ui.links(mlflow_store, "http://127.0.0.1:7") == [
        "Default               http://127.0.0.1:7/#/experiments/0?workflowType=machine_learning",
        "tiny-ddpm             http://127.0.0.1:7/#/experiments/1?workflowType=machine_learning",
        "tiny-ddpm (versions)  http://127.0.0.1:7/#/models/tiny-ddpm?workflowType=machine_learning",
    ]


def test_the_server_is_bound_to_the_loopback_interface_with_one_worker() -> None:
    words = ui.command("sqlite:///mlflow.db", 5000)
    assert "--host 127.0.0.1 --port 5000 --workers 1" in " ".join(words)


def test_a_store_that_is_a_server_is_not_served_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    with pytest.raises(InputError, match="is already a server"):
        ui.ui([])


def wait_for(address: str) -> None:
    for _ in range(240):
        with contextlib.suppress(requests.ConnectionError):
            requests.get(address, timeout=60)
            return
        time.sleep(0.5)


@pytest.fixture
def served(mlflow_store: MlflowClient, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A store with a base and its promoted correction, served by the command; its address and the links that it prints."""
    demo_module.demo(SMALL)
    (tmp_path / "open.yaml").write_text(json.dumps(OPEN))
    promote(["--version=2", "--remeasure=false", f"--gates={tmp_path / 'open.yaml'}"])
    port = free_port()
    command = [sys.executable, "-m", "pipelines.ui", f"--port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            lines = [process.stdout.readline() for _ in range(4)]
            wait_for(f"http://127.0.0.1:{port}/health")
            assert len(psutil.Process(process.pid).children(recursive=True)) == 1  # none that waits for jobs
            yield f"http://127.0.0.1:{port}", lines
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A browser that nobody has used before."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs a browser's driver: pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


class Reader:
    """Somebody who clicks through the UI."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def finds(self, xpath: str) -> Any:
        """Return what a page shows at an XPath, once it does."""
        return self._tries(xpath, lambda each: True)

    def clicks(self, xpath: str) -> None:
        """Click on what a page shows, once nothing covers it."""
        self._tries(xpath, lambda each: each.click() is None)

    def sees_picture(self, name: str) -> None:
        """Wait until a picture is on the page, loaded whole."""
        whole = "return arguments[0].complete && arguments[0].naturalWidth > 0"
        self._tries(f"//img[contains(@src, '{name}')]", lambda each: self.browser.execute_script(whole, each))

    def turns_to_new_tab(self) -> None:
        """Look at the tab that a click opens."""
        self._tries("//body", lambda each: len(self.browser.window_handles) > 1)
        self.browser.switch_to.window(self.browser.window_handles[-1])

    def _tries(self, xpath: str, act: Callable[[Any], bool]) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(Exception):  # the page is built again under the reader's hands
                for each in self.browser.find_elements("xpath", xpath):
                    if each.is_displayed() and act(each):
                        return each
            time.sleep(0.25)
        raise AssertionError(f"{self.browser.current_url} does not offer {xpath}")

    def keeps(self, name: str) -> None:
        """Take a screenshot, where screenshots are asked for."""
        if folder := os.environ.get(SHOTS):
            time.sleep(2)
            path = Path(folder) / f"{name}.png"
            self.browser.save_screenshot(str(path))
            Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


@pytest.mark.slow
def test_a_user_gets_from_the_experiment_to_the_pictures_and_to_the_champion(
    served: tuple[str, list[str]], browser: Any
) -> None:
    _, lines = served
    follow(browser, next(line.split()[1] for line in lines if line.startswith("digits-ddpm  ")))


def follow(browser: Any, experiment: str) -> None:
    """Go from an experiment to the pictures of its correction, to its charts, to the version and to the champion."""
    reader, run = Reader(browser), "//a[contains(., 'safemax-digits-forget0')]"
    browser.get(experiment)
    reader.finds(run)
    reader.clicks("//button[@aria-label='Close']")  # of the assistant that MLflow opens beside every page
    reader.clicks(run)
    reader.clicks("//*[text()='Model training']")  # once: the browser remembers it
    reader.finds("//*[text()='Run Name']")
    reader.keeps("ui-experiment")
    reader.clicks(run)
    reader.finds("//*[contains(., 'unlearning.method')]")
    reader.sees_picture("forgotten.png")
    reader.clicks("//*[text()='Show more']")
    reader.sees_picture("comparison.png")
    reader.finds("//td[contains(., 'forget/ua_reject')]")
    reader.keeps("ui-run")
    reader.clicks("//*[@role='tab'][contains(., 'Model metrics')]")
    reader.finds("//*[contains(@class, 'js-plotly-plot')]")
    browser.back()
    reader.clicks("//a[contains(@href, '#/models/digits-ddpm/versions/')]")
    reader.finds("//*[contains(text(), 'champion')]")
    reader.sees_picture("comparison.png")
    reader.finds("//a[contains(., 'digits-ddpm version 1')]")
    reader.finds("//a[text()='Runs']")  # the sidebar of the mode for training runs
    reader.keeps("ui-version")
    reader.clicks("//a[contains(., 'digits-ddpm version 1')]")  # a link in a text opens a tab
    reader.turns_to_new_tab()
    reader.sees_picture("samples/base.png")
