"""MLflow's pages as a person uses them. Everything that depends on how MLflow's UI is built is in this file."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import ConsoleMessage, FrameLocator, Locator, Page, expect, sync_playwright

PATIENCE_MS = 60_000
SIZE = {"width": 1400, "height": 900}
# MLflow lays a second, unsmoothed trace under each line; both carry the run's name.
_LINES = """chart => chart.data
    .filter(line => line.visible !== false && line.visible !== 'legendonly')
    .map(line => ({name: line.name, x: Array.from(line.x), y: Array.from(line.y)}))"""
_TWO_FRAMES = (
    "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"  # what was asked for is painted
)


class NoBrowserError(RuntimeError):
    """Chromium is missing."""


@contextmanager
def chromium() -> Iterator[Page]:
    """A page of the system's Chromium, without a window.

    Raises:
        NoBrowserError: there is no Chromium on the PATH.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        raise NoBrowserError("Chromium is not on the PATH. On Debian: apt install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        # Its sandbox does not work for root, which is who runs in many containers; it only ever sees our own server.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        context = browser.new_context(viewport=SIZE, locale="en-US", timezone_id="UTC")
        context.set_default_timeout(PATIENCE_MS)
        try:
            yield context.new_page()
        finally:
            browser.close()


@dataclass
class Mlflow:
    """A browser's page on an MLflow server."""

    page: Page
    address: str

    def __post_init__(self) -> None:
        expect.set_options(timeout=PATIENCE_MS)
        self.console: list[str] = []
        self.page.on("console", self._keep)
        # A panel beside the page, open on the first visit of a browser; nobody keeps it.
        assistant = self.page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]')
        self.page.add_locator_handler(assistant, lambda button: button.click())

    def _keep(self, message: ConsoleMessage) -> None:
        self.console.append(f"{message.type}: {message.text}")

    def open_experiment(self, name: str) -> None:
        """From the front page to the runs of an experiment."""
        self.page.goto(self.address)
        # MLflow begins with its pages for language models, whose experiments are others.
        self.page.get_by_text("Model training", exact=True).click()
        self.page.get_by_role("link", name="Experiments", exact=True).click()
        self.page.get_by_role("link", name=name, exact=True).click()
        expect(self._search_box).to_be_visible()

    @property
    def _search_box(self) -> Locator:
        return self.page.get_by_test_id("search-box")

    def search(self, condition: str, *, matching: int) -> None:
        """Type a condition into the search box, and wait until it says how many runs match (parents of matches included)."""
        self._search_box.fill(condition)
        self._search_box.press("Enter")
        expect(self.page.get_by_text(re.compile(rf"^{matching} matching runs?$"))).to_be_visible()

    def unfold(self, parent: str) -> None:
        """Show the children of a run, if they are folded away."""
        folded = self._row(parent).locator('button[data-component-id*="runnamecellrenderer"]')
        folded.click()

    def _row(self, name: str) -> Locator:
        """The left part of a run's row: its box and its name."""
        return self.page.locator(".ag-row", has=self.page.get_by_role("link", name=name, exact=True)).first

    def expect_runs(self, names: Sequence[str]) -> None:
        """These runs are listed, and no others."""
        listed = self.page.locator('.ag-row [col-id="attributes.`Run Name`"]')
        for name in names:
            expect(listed.get_by_role("link", name=name, exact=True)).to_be_visible()
        expect(listed.get_by_role("link")).to_have_count(len(names))

    def choose_columns(self, *, show: Sequence[str] = (), hide: Sequence[str] = ()) -> None:
        """Tick columns of a table of runs or models."""
        self.page.get_by_role("button", name="Columns").click()
        for name in (*show, *hide):
            box = self.page.get_by_placeholder("Search columns")
            if box.count():
                box.fill(name)
            self.page.locator('[class*="tree-title"]').filter(has_text=re.compile(rf"^{re.escape(name)}$")).last.click()
        self.page.keyboard.press("Escape")
        for name in show:
            expect(self.page.get_by_role("columnheader", name=name, exact=True).first).to_be_visible()
        for name in hide:
            expect(self.page.get_by_role("columnheader", name=name, exact=True)).to_have_count(0)

    def cells(self, name: str) -> dict[str, str]:
        """What is shown of a run or a model in its row: column id -> text."""
        row_id = self._row(name).get_attribute("row-id")
        self.page.evaluate(_TWO_FRAMES)
        found: dict[str, str] = self.page.evaluate(
            """id => Object.fromEntries([...document.querySelectorAll(`.ag-row[row-id="${id}"] [col-id]`)]
                .map(cell => [cell.getAttribute('col-id').replaceAll('`', ''), cell.innerText.trim()]))""",
            row_id,
        )
        # MLflow's table of models escapes its column ids once too often.
        return {html.unescape(column): text for column, text in found.items()}

    def compare(self, names: Sequence[str]) -> None:
        """Tick runs and press Compare."""
        for name in names:
            self._row(name).get_by_role("checkbox").first.check()
        self.page.get_by_role("button", name="Compare", exact=True).click()
        expect(self.page.get_by_text(f"Comparing {len(names)} Runs from 1 Experiment")).to_be_visible()

    def open_metric(self, name: str) -> None:
        """From a comparison to the chart of one metric."""
        # The table holds little more than the rows in sight, and its names are scrolled by its values.
        expect(self.page.locator(".ReactVirtualized__Grid").get_by_role("link").first).to_be_visible()
        values = self.page.locator(".ReactVirtualized__Grid").filter(has_not=self.page.get_by_role("link")).last
        link = self.page.get_by_role("link", name=name, exact=True)
        for top in range(0, int(values.evaluate("grid => grid.scrollHeight")), 150):
            values.evaluate("(grid, top) => grid.scrollTo({top})", top)
            self.page.evaluate(_TWO_FRAMES)
            if link.count():
                break
        link.press("Enter")
        expect(self._chart).to_be_visible()

    @property
    def _chart(self) -> Locator:
        return self.page.locator(".js-plotly-plot").first

    def lines(self, *, count: int) -> dict[str, list[tuple[float, float]]]:
        """The lines of the chart, once there are `count` of them: name of the run -> (x, y) in order."""
        self.page.wait_for_function(
            """count => {
                const chart = document.querySelector('.js-plotly-plot');
                return chart && chart.data && new Set(chart.data.map(line => line.name)).size >= count;
            }""",
            arg=count,
        )
        expect(self._chart.locator(".scatterlayer path.js-line").first).to_be_attached()
        drawn = self._chart.evaluate(_LINES)
        return {line["name"]: list(zip(line["x"], line["y"], strict=True)) for line in drawn}

    def painted(self) -> set[str]:
        """The names of the runs whose line is really painted.

        By the data that plotly binds to the path, not by colour: MLflow picks a run's colour from a small palette by
        the run's id, and two runs may well get the same one.
        """
        names: list[str] = self._chart.locator(".scatterlayer path.js-line").evaluate_all(
            """paths => paths
                .filter(path => path.getTotalLength() > 0 && getComputedStyle(path).stroke !== 'none')
                .map(path => path.closest('.trace').__data__[0].trace.name)"""
        )
        return set(names)

    def open_models(self) -> None:
        """From an experiment to its models."""
        self.page.get_by_role("link", name="Models", exact=True).click()
        expect(self.page.get_by_role("heading", name="Models", exact=True)).to_be_visible()

    def open_link(self, name: str) -> None:
        """Open the page of a run or model of the table."""
        self.page.get_by_role("link", name=name, exact=True).first.click()
        expect(self.page.get_by_role("heading", name=name)).to_be_visible()

    def figure(self, name: str) -> Locator:
        """The row of a metric or parameter on the page of a run or model."""
        return self.page.get_by_role("row").filter(has=self.page.get_by_text(name, exact=True)).first

    def open_artifact(self, folder: str, file: str) -> FrameLocator:
        """On a run's page, open an HTML artifact; returns the frame that shows it."""
        self.page.get_by_role("tab", name="Artifacts").click()
        self.page.get_by_text(folder, exact=True).first.click()
        self.page.get_by_text(file, exact=True).first.click()
        return self.page.frame_locator("iframe")

    def settle(self) -> None:
        """Wait until nothing moves any more, for a picture. (The network never rests: MLflow asks for news of its runs.)"""
        self.page.mouse.move(0, 0)
        self.page.evaluate(_TWO_FRAMES)
        self.page.evaluate(
            """() => Promise.all(document.getAnimations()
                .filter(animation => animation.effect.getComputedTiming().iterations !== Infinity)
                .map(animation => animation.finished.catch(() => {})))"""
        )

    def save_evidence(self, folder: Path) -> None:
        """What there is to see, and what the browser said, for whoever has to find out what went wrong."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "console.log").write_text("\n".join([self.page.url, *self.console]))
        self.page.screenshot(path=folder / "page.png")
        (folder / "page.html").write_text(self.page.content())
