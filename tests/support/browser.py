"""Somebody who reads MLflow's pages in a headless browser, clicks, and keeps screenshots."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1600,1250"),
)
PATIENCE = 90  # seconds for a page on a busy machine
SHOTS = "SAFEMAX_SCREENSHOTS"  # a folder: the pictures of README and docs are made there
# Looked up before a test changes the working directory.
_FOLDER = Path(os.environ[SHOTS]).absolute() if SHOTS in os.environ else None


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Any]:
    """Open a browser that nobody has used before; skip the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs a browser's driver: pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


class Reader:
    """Somebody who clicks through the UI."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def opens(self, address: str) -> None:
        """Go to a page, and close the assistant that MLflow opens beside it."""
        self.browser.get(address)
        self.finds("//h1 | //h2 | //h3 | //*[@role='tab'] | //table")
        for each in self.browser.find_elements("xpath", "//button[@aria-label='Close']"):
            with contextlib.suppress(Exception):
                each.click()

    def finds(self, xpath: str) -> Any:
        """Return what a page shows at an XPath, once it does."""
        return self._tries(xpath, lambda each: True)

    def finds_within(self, xpath: str, screens: float) -> Any:
        """Return what a page shows at an XPath, without scrolling for more than so many screens."""
        top = "return arguments[0].getBoundingClientRect().top / window.innerHeight"
        return self._tries(xpath, lambda each: 0 <= self.browser.execute_script(top, each) < screens)

    def clicks(self, xpath: str) -> None:
        """Click on what a page shows, once nothing covers it."""
        self._tries(xpath, lambda each: each.click() is None)

    def types(self, xpath: str, text: str) -> None:
        """Type into a field."""
        self._tries(xpath, lambda each: each.send_keys(text) is None)

    def scrolls_right(self, selector: str, pixels: int) -> None:
        """Scroll what a CSS selector finds."""
        move = "for (const each of document.querySelectorAll(arguments[0])) each.scrollLeft = arguments[1]"
        self.browser.execute_script(move, selector, pixels)

    @property
    def screen(self) -> float:
        """The height of a screen in pixels."""
        return float(self.browser.execute_script("return window.innerHeight"))

    def sees_picture(self, name: str, screens: float = 100, beside: str = "//body") -> Any:
        """Wait until a picture is on the page, loaded whole, within so many screens.

        Args:
            name: part of its address.
            screens: how many.
            beside: XPath of what the picture follows on the page.
        """
        whole = "return arguments[0].complete && arguments[0].naturalWidth > 0"
        top = "return arguments[0].getBoundingClientRect().top / window.innerHeight"
        return self._tries(
            f"{beside}/following::img[contains(@src, '{name}')][1] | {beside}//img[contains(@src, '{name}')]",
            lambda each: self.browser.execute_script(whole, each) and self.browser.execute_script(top, each) < screens,
        )

    def turns_to_new_tab(self) -> None:
        """Look at the tab that a click opens."""
        self._tries("//body", lambda each: len(self.browser.window_handles) > 1)
        self.browser.switch_to.window(self.browser.window_handles[-1])

    def keeps(self, name: str) -> None:
        """Take a screenshot, where screenshots are asked for."""
        if _FOLDER:
            time.sleep(2)
            path = _FOLDER / f"{name}.png"
            self.browser.save_screenshot(str(path))
            Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)

    def _tries(self, xpath: str, act: Callable[[Any], bool]) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(Exception):  # the page is built again under the reader's hands
                for each in self.browser.find_elements("xpath", xpath):
                    if each.is_displayed() and act(each):
                        return each
            time.sleep(0.25)
        raise AssertionError(f"{self.browser.current_url} does not offer {xpath}")
