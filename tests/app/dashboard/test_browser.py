"""End to end: the real server, looked at by a real Chromium."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.app.dashboard.browser import ARTIFACTS, SWITCHES, chromium, served, trace_file
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

PAGES = ("plan", "whatif", "workload", "simulate", "calibration", "deploy", "paper")
TILES = 6
WIDE, TABLET = {"width": 1280, "height": 800}, {"width": 820, "height": 1180}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Any]]:
    with served() as found:
        yield found


@pytest.fixture(scope="module")
def address(server: tuple[str, Any]) -> str:
    return server[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=SWITCHES)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport=WIDE, accept_downloads=True)
    found = context.new_page()
    problems = watched(found)
    yield found
    context.close()
    assert not problems, problems


def watched(page: Page) -> list[str]:
    """Collect what goes wrong in a page. Streamlit asks below each address whether it is served there,
    which is a 404 that means nothing.
    """
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
    page.on(
        "console",
        lambda said: (
            problems.append(said.text) if said.type == "error" and "404" not in said.text else None
        ),
    )
    page.on(
        "response",
        lambda got: (
            problems.append(f"{got.status} {got.url}")
            if got.status >= 400 and "/_stcore/" not in got.url
            else None
        ),
    )
    page.on(
        "request",
        lambda asked: (
            problems.append(f"asks {asked.url}")
            if not asked.url.startswith(("http://127.0.0.1", "blob:", "data:", "ws://127.0.0.1"))
            else None
        ),
    )
    return problems


def settled(page: Page) -> None:
    """Wait until the script has run and everything is drawn."""
    expect(page.locator('[data-testid="stMain"] h1')).to_be_visible(timeout=30_000)
    app, end = page.locator('[data-testid="stApp"]'), time.monotonic() + 30
    quiet, before = 0, ""
    while quiet < 4:
        assert time.monotonic() < end, "the page does not come to rest"
        page.wait_for_timeout(150)
        now = page.locator('[data-testid="stMain"]').inner_text()
        rests = app.get_attribute("data-test-script-state") == "notRunning" and now == before
        quiet, before = (quiet + 1 if rests else 0), now


def drawn(page: Page) -> int:
    """Wait until every plot that the script asked for is drawn, which is after it has run: the browser
    first fetches Plotly. Return how many there are.
    """
    asked, plots = page.locator('[data-testid="stPlotlyChart"]'), page.locator(".js-plotly-plot")
    expect(plots).to_have_count(asked.count(), timeout=30_000)
    return plots.count()


def open_(page: Page, url: str) -> None:
    page.goto(url)
    settled(page)


def headline(page: Page) -> dict[str, str]:
    """Return the tiles of Plan, once all are there: a busy machine rests between two of them."""
    expect(page.locator('[data-testid="stMetric"]')).to_have_count(TILES, timeout=30_000)
    found = page.locator('[data-testid="stMetric"]')
    return {
        found.nth(i).locator('[data-testid="stMetricLabel"]').inner_text(): found.nth(i)
        .locator('[data-testid="stMetricValue"]')
        .inner_text()
        for i in range(found.count())
    }


def slider(page: Page, label: str) -> Locator:
    return page.locator('[data-testid="stSlider"]', has_text=label).get_by_role("slider")


def move(page: Page, label: str, times: int = 1) -> None:
    handle = slider(page, label)
    handle.focus()
    for _ in range(times):
        handle.press("ArrowRight")
    page.wait_for_timeout(400)
    settled(page)


def upload(page: Page, label: str, file: Path | dict[str, Any]) -> None:
    expander = page.get_by_text("Upload your own")
    field = page.locator(f'[data-testid="stFileUploader"]:has-text("{label}") input[type=file]')
    if not field.count() or not field.first.is_enabled():
        expander.click()
    field.first.set_input_files(file)  # type: ignore[arg-type]
    page.wait_for_timeout(1500)
    settled(page)


def downloaded(page: Page, click: Any) -> bytes:
    with page.expect_download(timeout=20_000) as found:
        click()
    path = found.value.path()
    assert path is not None
    return Path(path).read_bytes()


OVERLAPS = """
() => {
  const bad = [];
  for (const svg of document.querySelectorAll('.js-plotly-plot')) {
    const texts = [...svg.querySelectorAll('.xtick text, .ytick text, .xtitle, .ytitle, .legendtext')]
      .filter(t => !/rotate\\((?!0[,)])/.test(t.getAttribute('transform') || ''))
      .map(t => [t.textContent, t.getBoundingClientRect()]).filter(([s, r]) => s && r.width > 0);
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const [a, p] = texts[i], [b, q] = texts[j];
      const w = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const h = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (w > 2 && h > 3) bad.push(a + ' | ' + b);
    }
  }
  return bad;
}
"""


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    ("size", "theme"), [(WIDE, "light"), (TABLET, "dark")], ids=["wide-light", "tablet-dark"]
)
def test_each_page_is_whole(
    browser: Browser, address: str, name: str, size: dict[str, int], theme: str
) -> None:
    context = browser.new_context(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    problems = watched(page)
    open_(page, f"{address}/{'' if name == 'plan' else name}")
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)
    if name not in ("simulate", "deploy"):
        expect(page.locator('[data-testid="stPlotlyChart"]').first).to_be_visible(timeout=30_000)
    drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    main = page.locator('[data-testid="stMain"]')
    height = int(main.evaluate("found => found.scrollHeight"))
    page.set_viewport_size({"width": size["width"], "height": min(height + 60, 6000)})
    page.wait_for_timeout(1200)
    plots = drawn(page)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}-{size['width']}-{theme}.png")
    overlapping = page.evaluate(OVERLAPS)
    context.close()
    assert not problems, problems
    assert not overlapping, overlapping
    assert plots or name in ("simulate", "deploy")


def test_a_slider_changes_the_headline_and_the_link_reproduces_it(
    browser: Browser, page: Page, address: str
) -> None:
    open_(page, address)
    before = headline(page)
    move(page, "prefill nodes (P)", 2)
    moved = headline(page)
    assert moved["with both paths"] != before["with both paths"]
    assert "prefill_nodes=4" in page.url
    context = browser.new_context(viewport=WIDE)
    again = context.new_page()
    open_(again, page.url)
    assert headline(again) == moved
    assert slider(again, "prefill nodes (P)").input_value() == "4"
    context.close()


def test_the_state_goes_along_to_other_pages(page: Page, address: str) -> None:
    open_(page, address)
    move(page, "decode nodes (D)", 1)
    page.get_by_role("link", name="Deploy").click()
    settled(page)
    page.wait_for_timeout(500)
    assert "decode_nodes=5" in page.url
    page.get_by_role("link", name="Plan").click()
    settled(page)
    assert slider(page, "decode nodes (D)").input_value() == "5"


def test_uploads_are_used(page: Page, address: str, tmp_path: Path) -> None:
    open_(page, address)
    before = headline(page)
    upload(page, "Recorded sessions", trace_file(tmp_path))
    with_trace = headline(page)
    assert with_trace["with both paths"] != before["with both paths"]
    profile = json.loads((ROOT / "examples" / "profiles" / "cpu-2-cores.json").read_text())
    for figure in profile["parts"]["gpu"]["figures"].values():
        for end in ("value", "low", "high"):
            figure[end] *= 2
    file = {
        "name": "faster.json",
        "mimeType": "application/json",
        "buffer": json.dumps(profile).encode(),
    }
    open_(page, f"{address}/?scenario=calibrated-cpu")
    before = headline(page)
    upload(page, "Calibration profile", file)
    assert headline(page)["with both paths"] != before["with both paths"]


def test_a_scenario_goes_to_the_command_line_with_the_same_numbers(
    page: Page, address: str, tmp_path: Path
) -> None:
    open_(page, f"{address}/deploy?prefill_nodes=3&hit_rate=95.0&decode_gpu=h20-sxm")

    def fetch(label: str) -> bytes:
        page.get_by_role("combobox").last.click()
        page.get_by_role("option", name=label).click()
        page.wait_for_timeout(500)
        settled(page)
        named = re.compile(r"Download \S+\.(yaml|json|zip|html)")
        return downloaded(page, page.get_by_role("button", name=named).click)

    plan = json.loads(fetch("Plan (JSON)"))
    file = tmp_path / "scenario.yaml"
    file.write_bytes(fetch("Scenario (YAML)"))
    command = [sys.executable, "-m", "app.cli", "plan", str(file), "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    printed = json.loads(done.stdout)
    for name in ("throughput_requests_per_s", "split", "speedup_over_basic", "utilisation"):
        assert printed[name] == plan[name]


def test_figures_download_as_data_and_pictures(page: Page, address: str) -> None:
    open_(page, address)
    buttons = page.get_by_role("button", name="data (CSV)")
    rows = list(csv.DictReader(io.StringIO(downloaded(page, buttons.nth(0).click).decode())))
    read = sum(float(row["value"]) for row in rows if row["source"] == "storage")
    assert read == pytest.approx(272.5e9, rel=0.01)
    figure = page.locator(".js-plotly-plot").nth(1)
    figure.hover()
    camera = figure.locator('.modebar-btn[data-title*="Download"]')
    assert downloaded(page, camera.click)[:8] == b"\x89PNG\r\n\x1a\n"
    page.get_by_text("SVG", exact=True).click()
    page.wait_for_timeout(500)
    settled(page)
    figure.hover()
    assert b"<svg" in downloaded(page, camera.click)[:200]


EVIL = "<script>window.x=1</script><img src=x onerror='window.x=1'>"


def test_bad_uploads_are_said_and_change_nothing(page: Page, address: str) -> None:
    open_(page, address)
    before = headline(page)

    def given(name: str, content: bytes) -> dict[str, Any]:
        return {"name": name, "mimeType": "application/octet-stream", "buffer": content}

    bomb = gzip.compress(b"0" * (300 * 2**20), 1)
    for label, file, words in (
        ("Scenario (YAML)", given("s.yaml", b"a: ["), "not valid YAML"),
        ("Scenario (YAML)", given("s.yaml", b"\xff\xfe\x00"), "not a text file"),
        ("Calibration profile", given("p.json", b"{}"), "not a profile"),
        ("Recorded sessions", given("../../etc/x.csv", b"a,b\n1,2\n"), "x.csv"),
        ("Recorded sessions", given("bomb.csv.gz", bomb), "bomb.csv.gz"),
    ):
        upload(page, label, file)
        alert = page.locator('[data-testid="stSidebar"] [data-testid="stAlert"]')
        expect(alert).to_contain_text(words, timeout=20_000)
        expect(alert).to_contain_text("Nothing was changed")
        assert headline(page) == before
    field = page.locator('[data-testid="stFileUploader"]:has-text("Recorded sessions") input')
    field.first.set_input_files(given("big.exe", b"0"))
    page.wait_for_timeout(500)
    assert headline(page) == before


def test_a_file_of_200_mb_is_refused(page: Page, address: str, tmp_path: Path) -> None:
    open_(page, address)
    before = headline(page)
    big = tmp_path / "big.csv"
    with big.open("wb") as file:
        file.truncate(200 * 10**6)
    upload(page, "Recorded sessions", big)
    # Beside the file's name, red; the sentence itself shows where the mouse is on it.
    refused = page.get_by_text(re.compile("must be 100(.0)?MB or smaller"))
    expect(refused).to_have_count(1)
    assert headline(page) == before


def test_html_in_a_name_stays_text(page: Page, address: str) -> None:
    text = (ROOT / "examples" / "paper-mean-turn.yaml").read_text()
    text = re.sub(r"^name: .*$", lambda _: f"name: {json.dumps(EVIL)}", text, flags=re.MULTILINE)
    open_(page, address)
    file = {"name": "evil.yaml", "mimeType": "text/yaml", "buffer": text.encode()}
    upload(page, "Scenario (YAML)", file)
    expect(page.get_by_text("<script>window.x=1").first).to_be_visible()
    for name in ("What-if", "Workload", "Deploy"):
        page.get_by_role("link", name=name).click()
        settled(page)
    assert page.evaluate("window.x") is None


def test_a_simulation_is_cancelled_and_leaves_no_child(page: Page, server: tuple[str, Any]) -> None:
    address, process = server
    open_(page, f"{address}/simulate?simulate.agents=2000")
    page.get_by_role("button", name="Run", exact=True).click()
    cancel = page.get_by_role("button", name="Cancel")
    expect(cancel).to_be_visible(timeout=20_000)
    assert any("worker" in " ".join(child.cmdline()) for child in _children(process.pid))
    cancel.click()
    expect(page.get_by_text("Cancelled; nothing of it is kept")).to_be_visible(timeout=20_000)
    end = time.monotonic() + 10
    while any("worker" in " ".join(child.cmdline()) for child in _children(process.pid)):
        assert time.monotonic() < end
        time.sleep(0.1)


def _children(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE and child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_it_listens_on_this_machine_only(server: tuple[str, Any]) -> None:
    _, process = server
    listening = [
        link.laddr.ip
        for link in psutil.Process(process.pid).net_connections(kind="inet")
        if link.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]
