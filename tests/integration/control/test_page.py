"""The page in a browser: what it shows, that no text becomes markup, that it asks no more than it must and loses no line."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from page_stage import MARKUP, RUN_ID, Stage
from patience import LIMIT_S
from PIL import Image

from orchestrator.job import JobState, job_to_dict
from orchestrator.paths import Home

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tried in a browser by playwright, of the test extra")
expect = playwright.expect

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NEEDED = "no Chromium is found: Debian has the package chromium-headless-shell; $CHROMIUM names one elsewhere"
IMAGES = Path(__file__).parents[3] / "docs" / "images"
LIMIT_MS = 1000 * LIMIT_S
expect.set_options(timeout=LIMIT_MS)


def browser_path() -> str | None:
    return os.environ.get("CHROMIUM") or next((found for name in BROWSERS if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser():
    path = browser_path()
    if path is None:
        pytest.skip(NEEDED)
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])  # of pages that these tests wrote
        yield opened
        opened.close()


@pytest.fixture
def stage(tmp_path):
    made = Stage(Home(tmp_path), open_reads=True)
    yield made
    made.close()


@pytest.fixture
def tab(browser):
    """A tab of its own; whatever the browser complains about fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    context.set_default_timeout(LIMIT_MS)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    yield page
    context.close()
    assert [line for line in said if not re.search(r"Failed to load resource|ERR_CONNECTION", line)] == []


def sign_in(stage, tab: Stage, user: str) -> None:
    tab.get_by_role("button", name="Sign in").click()
    tab.get_by_label("Token").fill(stage.tokens[user])
    tab.keyboard.press("Enter")
    expect(tab.locator("#user")).to_contain_text(user)


# what is seen


def test_the_queue_shows_the_cluster_and_who_runs_waits_and_has_ended(stage, tab):
    stage.put_day()
    tab.goto(f"{stage.server.url}/")
    expect(tab).to_have_url(stage.page())
    expect(tab.locator("#tiles")).to_contain_text("GPUs58 of 64")
    expect(tab.locator("#nodes .node")).to_have_count(8)
    expect(tab.locator("#tenants tbody tr").first).to_contain_text("language")
    running = tab.locator("#running tbody tr").first
    for words in ("gpt-7b-pretrain-01k", "41 %", "82,400", "2.3185", "412K", "92 %"):
        expect(running).to_contain_text(words)
    first = tab.locator("#waiting tbody tr").first
    for words in ("llama-8b-finetune-r0", "reserved", "needs 16 GPUs on 2 nodes"):
        expect(first).to_contain_text(words)
    expect(tab.locator("#ended tbody tr").nth(2)).to_contain_text("size mismatch (64 vs 128)")
    expect(tab.locator("#status")).to_have_text("live")
    running.get_by_role("link").click()
    expect(tab.locator("h1")).to_have_text("gpt-7b-pretrain-01k")


def test_a_job_shows_where_its_time_went_what_happened_and_what_it_prints(stage, tab):
    tab.goto(stage.page(stage.put_day()))
    expect(tab.locator("#ledger-note")).to_have_text("91.9 % of 101d 08h of all workers")
    expect(tab.locator("#ledger tbody tr")).to_have_count(14)
    expect(tab.locator("#curve polyline.training")).to_have_count(1)
    expect(tab.locator("#incidents tbody tr")).to_have_count(2)
    expect(tab.locator("#receipts tbody tr").first).to_contain_text("1893.4")
    expect(tab.locator("#events tbody tr")).to_have_count(14)
    expect(tab.locator("#log .line")).to_have_count(40)
    expect(tab.get_by_role("link", name="MLflow run")).to_have_attribute("href", f"https://mlflow.example.org/base/#/runs/{RUN_ID}")
    tab.get_by_role("combobox", name="Rank").select_option("13")
    expect(tab.locator("#log .line")).to_have_count(10)
    tab.locator("#curve svg").focus()
    tab.keyboard.press("End")
    expect(tab.locator("#curve figcaption")).to_have_text("step 82,400: loss 2.3185")


def test_a_job_that_waits_says_what_would_let_it_start(stage, tab):
    stage.put_day()
    tab.goto(stage.page("bert-large-d03"))
    expect(tab.locator("#head .badge")).to_have_text("queued")
    expect(tab.locator("#head")).to_contain_text("Position ")
    expect(tab.locator("#curve")).to_contain_text("it comes with each checkpoint")


def test_a_job_that_ends_or_starts_after_the_last_date_there_is_breaks_nothing(stage, tab):
    spec = stage.spec("m", max_steps=2**53)
    stage.run("endless", spec, (("n0", 1),), 0.5, 1.0, eta_s=1e17)
    stage.wait("patient", spec, 1, "waits", start_s=1e17)
    tab.goto(stage.page())
    expect(tab.locator("#running tbody tr")).to_contain_text("endless")
    expect(tab.locator("#running tbody tr time")).to_have_count(0)
    expect(tab.locator("#waiting tbody tr")).to_contain_text("patient")
    tab.goto(stage.page("endless"))
    expect(tab.locator("#head .badge")).to_have_text("running")


def test_a_job_that_there_is_not_is_said_so(stage, tab):
    stage.put("a", stage.spec("m"))
    tab.goto(stage.page("nothing"))
    expect(tab.locator("#head")).to_contain_text("no job is named 'nothing'. Known: a.")


def test_no_text_of_a_user_becomes_markup(stage, tab):
    spec = stage.spec("m", workers=1)
    stage.put(MARKUP, spec, position=1, reason=MARKUP, user=MARKUP, tenant=MARKUP)
    stage.run("r", spec, (("n0", 1),), 0.5, 1.0, phase=MARKUP, tokens_per_s=1.0)
    stage.put("ended", spec, state=JobState.FAILED, reason=f"{MARKUP}\n{MARKUP}", ended_s=stage.now)
    stage.put_output("ended", 0, 0, f"{MARKUP}\n")
    tab.goto(stage.page())
    expect(tab.locator("#waiting td.reason")).to_have_text(MARKUP)
    expect(tab.locator("#waiting td.job a")).to_have_text(MARKUP)
    expect(tab.locator("#running td.state small")).to_have_text(MARKUP)
    tab.goto(stage.page("ended"))
    expect(tab.locator("#log .line")).to_contain_text(MARKUP)
    expect(tab.locator("#head .reason")).to_have_text(MARKUP)
    expect(tab.locator("#head pre")).to_have_text(MARKUP)
    assert "owned" not in tab.title()
    assert tab.locator("main img, main script, main b >> text=bold").count() == 0


def test_a_queue_of_ten_thousand_is_turned_over_page_by_page(stage, tab):
    from orchestrator.control.records import tables

    spec, queued_s = stage.spec("m"), stage.now - 60
    job = job_to_dict(stage.put("j00000", spec, position=1, queued_s=queued_s))
    rows = [{**job, "id": f"j{number:05d}", "position": number + 1} for number in range(1, 10_000)]
    with stage.store.engine.begin() as connection:
        connection.execute(tables.jobs.insert(), rows)
    tab.goto(stage.page())
    pager = tab.locator("#waiting .pager")
    expect(pager).to_contain_text("1–25 of 10,000")
    tab.get_by_role("button", name="Last page").press("Enter")
    expect(pager).to_contain_text("9,976–10,000 of 10,000")
    expect(tab.locator("#waiting tbody tr").last).to_contain_text("j09999")
    tab.keyboard.press("/")
    tab.keyboard.type("j00042")
    expect(tab.locator("#waiting tbody tr")).to_have_count(1)
    expect(tab.locator("#waiting tbody tr td").first).to_have_text("43")


@pytest.mark.parametrize("job", [False, True])
def test_nothing_is_wider_than_a_phone(stage, tab, job):
    shown = stage.put_day()
    tab.set_viewport_size({"width": 360, "height": 740})
    tab.goto(stage.page(shown if job else ""))
    expect(tab.locator("#events tbody tr" if job else "#ended tbody tr").first).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    if not job:
        expect(tab.locator("#waiting td.job small.narrow").first).to_be_visible()


# who may what


def test_the_token_is_asked_for_once_kept_in_the_tab_and_sent_as_a_header_only(tab, tmp_path):
    stage = Stage(Home(tmp_path))
    try:
        stage.put_day()
        asked: list[tuple[str, dict]] = []
        tab.on("request", lambda request: asked.append((request.url, request.headers)))
        tab.goto(stage.page())
        expect(tab.get_by_label("Token")).to_be_focused()
        tab.keyboard.press("Escape")
        expect(tab.locator("#status")).to_contain_text("a token is needed")
        tab.get_by_role("button", name="Sign in").click()
        tab.get_by_label("Token").fill("orc.ann.wrong")
        tab.keyboard.press("Enter")
        expect(tab.get_by_role("dialog").get_by_role("alert")).to_contain_text("this token is not known")
        assert tab.evaluate("sessionStorage.length") == 0
        tab.get_by_label("Token").fill(stage.tokens["ann"])
        tab.keyboard.press("Enter")
        expect(tab.locator("#user")).to_contain_text("ann")
        tab.get_by_role("link", name="gpt-7b-pretrain-01k").first.click()
        expect(tab.locator("#log .line")).to_have_count(40)
        assert tab.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[stage.tokens["ann"]], 0, ""]
        assert not [url for url, _ in asked if "orc." in url or not url.startswith(stage.server.url)]
        assert any(headers.get("authorization") == f"Bearer {stage.tokens['ann']}" for _, headers in asked)
        tab.get_by_role("button", name="Sign out").click()
        expect(tab.get_by_label("Token")).to_be_visible()
    finally:
        stage.close()


def test_a_job_is_cancelled_and_its_priority_set_by_keyboard(stage, tab):
    stage.put_day()
    tab.goto(stage.page())
    expect(tab.locator("#waiting tbody tr").first).to_contain_text("llama-8b-finetune-r0")
    assert tab.get_by_role("button", name=re.compile("^Cancel ")).count() == 0
    sign_in(stage, tab, "ann")
    tab.get_by_role("button", name="Priority of llama-8b-finetune-r0").press("Enter")
    tab.get_by_role("spinbutton").fill("12")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("button", name="Priority of llama-8b-finetune-r0: 12")).to_be_visible()
    assert stage.store.get("llama-8b-finetune-r0").spec.scheduling.priority == 12
    tab.get_by_role("button", name="Cancel llama-8b-finetune-r0").press("Enter")
    tab.get_by_label("At once").check()
    tab.get_by_role("button", name="Cancel the job").press("Enter")
    expect(tab.locator("#waiting tbody tr").first).to_contain_text("is to stop")
    assert stage.store.get("llama-8b-finetune-r0").stop_requested == "now"
    expect(tab.get_by_role("button", name="Cancel bert-large-d03")).to_have_count(0)


def test_what_the_server_refuses_stands_in_the_question(stage, tab):
    stage.put("a", stage.spec("m"), position=1)
    tab.goto(stage.page("a"))
    sign_in(stage, tab, "ann")
    tab.get_by_role("button", name="Cancel a").click()
    stage.store.update(stage.store.get("a"), tenant="vision")
    tab.get_by_role("button", name="Cancel the job").click()
    expect(tab.get_by_role("alert")).to_contain_text("belongs to the tenant vision")
    tab.keyboard.press("Escape")
    expect(tab.get_by_role("dialog")).to_have_count(0)
    assert stage.store.get("a").stop_requested == ""


# live


def test_lines_are_followed_each_once_over_restarts_of_the_server(stage, tab):
    stage.put("a", stage.spec("m", workers=2), state=JobState.RUNNING)
    port, offset, lines = int(stage.server.url.rpartition(":")[2]), 0, []
    tab.goto(stage.page("a"))
    for turn in range(2):
        for number in range(4):
            text = f"turn {turn} line {number}"
            stage.put_output("a", 0, offset, f"{text}\n")
            offset, lines = offset + len(text) + 1, [*lines, text]
        expect(tab.locator("#log .line")).to_have_count(len(lines))
        stage.stop()
        expect(tab.locator("#status")).to_contain_text("The server cannot be reached")
        stage.serve(port)
    expect(tab.locator("#status")).to_have_text("live")
    stage.put_output("a", 0, offset, "last\n")
    expect(tab.locator("#log .line")).to_have_count(len(lines) + 1)
    assert tab.locator("#log .line span:last-child").all_inner_texts() == [*lines, "last"]


def test_a_tab_that_nobody_sees_asks_for_nothing(stage, tab):
    stage.put("a", stage.spec("m"), state=JobState.RUNNING)
    tab.clock.install()
    tab.goto(stage.page("a"))
    expect(tab.locator("#status")).to_have_text("live")
    hide = """hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    tab.evaluate(hide, True)
    expect(tab.locator("#status")).to_have_text("paused")
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    stage.put_output("a", 0, 0, "printed meanwhile\n")
    tab.clock.fast_forward("10:00")
    assert asked == []
    tab.evaluate(hide, False)
    expect(tab.locator("#log .line")).to_contain_text("printed meanwhile")
    expect(tab.locator("#status")).to_have_text("live")


def test_what_has_not_changed_is_not_sent_again(stage, tab):
    stage.put_day()
    statuses: list[int] = []
    tab.on("response", lambda response: statuses.append(response.status) if "/v1/overview" in response.url else None)
    tab.goto(stage.page())
    with tab.expect_response(lambda response: "/v1/overview" in response.url and response.status == 304):
        pass
    assert statuses[0] == 200


# pictures: with UPDATE_IMAGES=1 those of the documentation are these


@pytest.mark.parametrize(("name", "scheme"), [("queue", "light"), ("job", "dark")])
def test_pictures_are_full_and_nothing_stands_out_at_the_side(stage, tab, name, scheme):
    shown = stage.put_day()
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 1280, "height": 960})
    tab.goto(stage.page())
    sign_in(stage, tab, "ann")
    if name == "job":
        tab.goto(stage.page(shown))
        expect(tab.locator("#log .line")).to_have_count(40)
        expect(tab.locator("#curve svg")).to_be_visible()
        expect(tab.locator("#incidents tbody tr")).to_have_count(2)
    tab.mouse.move(640, 400)
    expect(tab.get_by_role("button", name="Cancel gpt-7b-pretrain-01k")).to_be_visible()
    taken = tab.screenshot()
    picture = np.asarray(Image.open(io.BytesIO(taken)).convert("L"), dtype=float)
    assert picture.shape == (960, 1280)
    bands = picture.reshape(8, 120, 1280).std(axis=(1, 2))
    assert bands.min() > 2, f"a part of the page is empty: {bands}"
    paper = np.median(picture)
    assert paper > 200 if scheme == "light" else paper < 60
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    if "UPDATE_IMAGES" in os.environ:
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / f"{name}.png").write_bytes(taken)
