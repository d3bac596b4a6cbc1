"""The pages, in a real browser on a real service where that is what counts, and over plain HTTP where it is not."""

import asyncio
import csv
import io
import itertools
import re
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import numpy as np
import psycopg
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI
from playwright.async_api import Browser, Page, async_playwright, expect
from psycopg import sql

from app.api.edge import _HEADERS
from app.domain.alerts import Condition, DaysOver, LevelAtLeast, ProbabilityOver, RunwayUnder
from app.domain.calendar import end_of_quarter
from app.domain.risk import LEVELS
from app.main import create_app
from app.settings import Settings
from app.web.alert_rules import in_words
from app.web.charts import FLOW_HEIGHT, HEIGHT, LEAST, fan, flow, shift
from app.web.render import days, percent
from tests.receiver import receiver

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>"
AWKWARD = 'db/primary?#1 "x" & 100%'
# server: the level that its cpu keeps to; db runs out, web grows.
SERVERS = {HOSTILE: 93.0, AWKWARD: 85.0, "web-1": 60.0, "web-2": 20.0}
HORIZON = 14
DAYS = np.arange("2022-09-01", "2023-01-01", dtype="datetime64[D]")


def history() -> str:
    """120 days of four servers, with a percent metric and one of which nobody knows a threshold."""
    rows = ["server_id,timestamp,cpu_p95,sessions,region"]
    for name, level in SERVERS.items():
        region = "north" if name.startswith("web") else "south"
        quoted = '"' + name.replace('"', '""') + '"'
        rows += [f"{quoted},{day},{level + i % 7 - 3},{100 * level + i % 5},{region}" for i, day in enumerate(DAYS)]
    return "\n".join(rows)


@dataclass(frozen=True)
class Service:
    """A service that listens; without a worker, so that a test says when a run goes on."""

    app: FastAPI
    url: str
    http: httpx.AsyncClient

    async def dataset(self) -> str:
        made = await self.http.post("/datasets", files={"file": ("fleet.csv", history().encode(), "text/csv")})
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    async def forecast(self, dataset: str, *models: str, metric: str = "cpu_p95", name: str = "review") -> str:
        body = {"dataset_id": dataset, "metric": metric, "horizon": HORIZON, "models": models, "name": name}
        made = await self.http.post("/forecasts", json=body)
        assert made.status_code == 202, made.text
        return str(made.json()["id"])

    async def run(self, forecast: str, model: str) -> None:
        services = self.app.state.services
        for run in (await services.forecasts.get(uuid.UUID(forecast))).runs:
            if run.model == model:
                await services.runs.tick(run.id)


@asynccontextmanager
async def serving(database_url: str, folder: Path, **more: Any) -> AsyncIterator[Service]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        settings = Settings(
            data_dir=folder, database_url=database_url, host="127.0.0.1", port=port, compute_processes=1, **more
        )
        app = create_app(settings)
        server = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None, timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            await _answers(http, task)
            yield Service(app, url, http)
        server.should_exit = True
        await task


async def _answers(http: httpx.AsyncClient, task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(30):
        while not task.done():
            try:
                await http.get("/healthz")
                return
            except httpx.TransportError:
                await asyncio.sleep(0.02)
    await task


@pytest.fixture(scope="module")
def module_database(postgres_url: str, template_database: str) -> Iterator[str]:
    name = f"headroom_pages_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template_database))
        )
    yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(module_database: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with serving(module_database, tmp_path_factory.mktemp("pages")) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dataset(service: Service) -> str:
    return await service.dataset()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def done(service: Service, dataset: str) -> str:
    """A forecast that has succeeded."""
    forecast = await service.forecast(dataset, "seasonal_naive")
    await service.run(forecast, "seasonal_naive")
    return forecast


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


class Watched:
    """A page, and whatever its browser had to complain of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._dialog)
        page.on("request", lambda request: self.requests.append(request.url))

    async def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        await dialog.dismiss()


@asynccontextmanager
async def opened(browser: Browser, url: str = "", **options: Any) -> AsyncIterator[Watched]:
    context = await browser.new_context(base_url=url, **options)
    yield Watched(await context.new_page())
    await context.close()


def addresses(forecast: str) -> list[str]:
    server = f"/pages/forecasts/{forecast}/servers"
    return [
        "/",
        f"/pages/forecasts/{forecast}",
        f"{server}/{quote(HOSTILE, safe='')}",
        f"{server}/{quote(AWKWARD, safe='')}?threshold=70",
        "/pages/risk",
    ]


@pytest.mark.parametrize("place", range(5))
async def test_a_page_runs_nothing_foreign_and_breaks_no_rule(
    service: Service, done: str, browser: Browser, place: int
) -> None:
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(addresses(done)[place])
        for width, scheme in [(1280, "light"), (400, "dark")]:
            await page.set_viewport_size({"width": width, "height": 900})
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            for plot in await page.locator("[data-plot]").all():
                await expect(plot).to_have_attribute("data-drawn", "yes")
                await expect(plot.locator(".main-svg").first).to_be_visible()
                await plot.hover(position={"x": width / 4, "y": 150})
            # A chart takes its new size a moment after the window has.
            await page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
        assert await page.locator("img").count() == 0, "a server's name became markup"
        assert HOSTILE in await page.locator("main").inner_text() or place == 3
        assert {urlsplit(request).netloc for request in watched.requests} <= {urlsplit(service.url).netloc}
        unlabelled = "e => e.filter(x => x.type !== 'hidden' && !x.labels.length && !x.ariaLabel).map(x => x.outerHTML)"
        assert await page.locator("input, select, progress").evaluate_all(unlabelled) == []
        assert await page.locator("h1").count() == 1
        await expect(page.get_by_role("main")).to_have_count(1)
        assert watched.complaints == []


async def test_the_overview_says_who_runs_out_and_leads_there(service: Service, done: str, browser: Browser) -> None:
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/?forecast_id={done}")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("1 of 4 servers may run out within 14 days")
        first = page.locator("table.servers tbody tr").first
        await expect(first).to_contain_text(HOSTILE)
        await expect(first).to_contain_text("Very high")
        await expect(first).to_contain_text("1\u202fday")
        await first.get_by_role("link").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        await expect(page.locator(".facts")).to_contain_text("2023-01-01, first p90 over the threshold")


async def test_a_dot_names_its_server_and_opens_it(service: Service, done: str, browser: Browser) -> None:
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/risk?forecast_id={done}")
        await expect(page.locator("#scatter")).to_have_attribute("data-drawn", "yes")
        box = await page.locator("#scatter .points path").first.bounding_box()
        assert box is not None
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        await page.mouse.move(middle[0] + 40, middle[1])
        await page.mouse.move(*middle, steps=5)
        await expect(page.locator("#scatter .hoverlayer")).to_contain_text(HOSTILE)
        await page.mouse.click(*middle)
        await expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
        assert watched.complaints == []


async def test_a_server_shows_what_its_forecast_adds_up_from(service: Service, browser: Browser) -> None:
    days = np.arange("2021-09-01", "2023-03-23", dtype="datetime64[D]")
    busy = 20 * end_of_quarter(days.astype("datetime64[s]"))
    rows = [f'"{name}",{day},{40 + 5 * (i % 7 < 5) + busy[i]}' for name in ("a&b", "c") for i, day in enumerate(days)]
    content = "\n".join(["server_id,timestamp,cpu_p95", *rows])
    made = await service.http.post("/datasets", content=content, headers={"Content-Type": "text/csv"})
    dataset = made.json()["id"]
    forecast = await service.forecast(dataset, "seasonal_naive")
    await service.run(forecast, "seasonal_naive")
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/forecasts/{forecast}/servers/{quote('a&b')}")
        plot = page.locator("[data-explanation]")
        await plot.scroll_into_view_if_needed()
        await expect(plot).to_have_attribute("data-drawn", "yes", timeout=30_000)
        await expect(plot.locator(".legend")).to_contain_text("weekday")
        await expect(plot.locator(".annotation")).to_contain_text("end of quarter, +")
        await page.get_by_text("The parts in numbers").click()
        parts = page.get_by_role("region", name="Parts of the forecast").locator("tbody th")
        await expect(parts).to_have_text(["level", "trend", "weekday", "time of the year", "calendar events", "other"])
        event = page.get_by_role("region", name="Events").get_by_role("row", name="end of quarter")
        await expect(event.locator("td").first).to_have_text("7")
        await expect(page.locator("[data-method]")).to_contain_text("1 other like it")
        assert watched.complaints == []


async def test_savings_name_each_server_with_its_sum(service: Service, browser: Browser) -> None:
    days = np.arange("2022-01-01", "2023-01-01", dtype="datetime64[D]")
    levels = {
        HOSTILE: (12, "north"),
        "busy": (52, "north"),
        "half": (36, "south"),
        "tiny": (8, "west"),
        "full": (70, "south"),
    }
    rows = [
        f'"{name}",{day},{level + (10 if name == "full" and i % 7 < 5 else i % 3)},{region}'
        for name, (level, region) in levels.items()
        for i, day in enumerate(days)
    ]
    content = "\n".join(["server_id,timestamp,cpu_p95,region", *rows])
    made = await service.http.post("/datasets", content=content, headers={"Content-Type": "text/csv"})
    forecast = await service.forecast(made.json()["id"], "seasonal_naive")
    await service.run(forecast, "seasonal_naive")
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/savings?forecast_id={forecast}")
        await expect(page.locator("#saving")).to_have_text("$225.00")
        table = page.get_by_role("table", name="Recommendations")
        await expect(table.locator("tbody tr")).to_have_count(3)
        await expect(table.locator("tbody tr").first).to_contain_text("Move its work onto busy and give it up")
        await expect(table.locator("tbody tr").first).to_contain_text(HOSTILE)
        await expect(table.locator("tbody tr").nth(1)).to_contain_text("$100.00 × (1 - 1/4) = $75.00 a month")
        await expect(page.get_by_role("table", name="Profiles of load")).to_contain_text("low")
        for width in (400, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            await page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
        await page.get_by_label("What", exact=True).select_option("consolidate")
        await page.get_by_role("button", name="Show").click()
        await expect(page.locator("#saving")).to_have_text("$100.00")
        assert await page.locator("img").count() == 0, "a server's name became markup"
        assert watched.complaints == []


async def test_a_metric_that_savings_lack_is_forecast_from_there(
    service: Service, done: str, dataset: str, browser: Browser
) -> None:
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/savings?forecast_id={done}")
        await page.get_by_role("button", name="Forecast it: sessions").click()
        await expect(page.get_by_role("status")).to_contain_text("sessions is being forecast")
        newest = (await service.http.get("/forecasts", params={"limit": 1})).json()["items"][0]
        asked = {name: newest["request"][name] for name in ("dataset_id", "metric", "horizon")}
        assert asked == {"dataset_id": dataset, "metric": "sessions", "horizon": HORIZON}
        await service.http.post(f"/forecasts/{newest['id']}/cancel")
        assert watched.complaints == []


async def test_savings_ask_for_the_metrics_that_are_not_forecast(service: Service, done: str) -> None:
    answer = await service.http.get("/pages/savings", params={"forecast_id": done})
    assert answer.status_code == 200
    assert "Nothing is recommended before every metric" in answer.text
    assert "<code>sessions</code>" in answer.text
    wrong = await service.http.get("/pages/savings", params={"epsilon": "7"})
    assert wrong.status_code == 422


async def test_what_if_shows_both_worlds_side_by_side(service: Service, done: str, browser: Browser) -> None:
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/risk?forecast_id={done}&sort=max_p90")
        panel = page.locator("#what-if")
        await panel.get_by_text("What if …").click()
        growth = panel.get_by_role("group", name="Growth")
        await growth.get_by_label("Percent").fill("10")
        await growth.get_by_label("Which servers").select_option("south")
        await panel.get_by_role("group", name="Servers retired").get_by_label("These").fill(HOSTILE)
        await panel.get_by_role("button", name="Compare").click()
        headline = panel.get_by_role("heading")
        await expect(headline).to_have_text("1 of 3 servers may run out within 14 days, as many as now")
        await expect(panel).to_contain_text(f"+10 % south: 2 servers; retired {HOSTILE}: 1 server")
        await expect(growth.get_by_label("Percent")).to_have_value("10")
        fleet = panel.get_by_role("table", name="The fleet now and what if").get_by_role("row")
        await expect(fleet.filter(has_text="All")).to_have_text(re.compile(r"All\s*4\s*3\s*−1"))
        await expect(fleet.filter(has_text="High").last).to_have_text(re.compile(r"High\s*1\s*0\s*−1"))
        moved = panel.get_by_role("table", name="Servers that change").get_by_role("row")
        await expect(moved).to_have_count(5)
        await expect(moved.nth(1)).to_have_text("Comes to be at risk: 1 server")
        await expect(moved.nth(2)).to_contain_text(AWKWARD)
        await expect(moved.nth(2)).to_contain_text("over 14 days")
        await expect(moved.nth(2)).to_contain_text("1\u202fday")
        await expect(moved.nth(3)).to_have_text("No longer at risk: 1 server")
        await expect(moved.nth(4)).to_contain_text("Retired")
        await expect(panel.get_by_role("img", name="Servers by level")).to_be_visible()
        told = await panel.locator(".w-ribbon title").all_text_contents()
        assert told == [
            "1 server: normal to normal",
            "1 server: under-used to under-used",
            "1 server: very high to retired",
            "1 server: high to very high",
        ]
        for width in (400, 1280):
            await page.set_viewport_size({"width": width, "height": 900})
            await page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
        await page.get_by_label("Order").select_option("server_id")
        await page.get_by_role("button", name="Show").click()
        await expect(headline).to_contain_text("1 of 3 servers")
        await panel.get_by_role("link", name="Back to the fleet as it is").click()
        await expect(headline).to_have_count(0)
        await expect(page.get_by_label("Order")).to_have_value("server_id")
        assert await page.locator("img").count() == 0, "a server's name became markup"
        assert watched.complaints == []


async def test_what_no_scenario_can_hold_is_told_at_its_field_without_any_script(
    service: Service, done: str, browser: Browser
) -> None:
    async with opened(browser, service.url, java_script_enabled=False) as watched:
        page = watched.page
        await page.goto(f"/pages/risk?forecast_id={done}")
        panel = page.locator("#what-if")
        await panel.get_by_text("What if …").click()
        percentage = panel.get_by_role("group", name="Growth").get_by_label("Percent")
        start = panel.get_by_role("group", name="Growth").get_by_label("From")
        retired = panel.get_by_role("group", name="Servers retired").get_by_label("These")
        await percentage.fill("much")
        await retired.fill("nobody")
        await panel.get_by_role("button", name="Compare").click()
        await expect(percentage).to_have_accessible_description(re.compile("should be a valid number"))
        await expect(percentage).to_have_attribute("aria-invalid", "true")
        await expect(panel.get_by_role("alert")).to_have_text("Nothing was compared: see 1 field above.")
        await percentage.fill("5")
        await panel.get_by_role("button", name="Compare").click()
        await expect(retired).to_have_accessible_description("The forecast has no server 'nobody'.")
        await retired.fill("")
        await start.fill("2024-01-01")
        await panel.get_by_role("button", name="Compare").click()
        await expect(start).to_have_accessible_description(re.compile("forecasts of these servers end before"))
        await start.fill("")
        await panel.get_by_role("button", name="Compare").click()
        await expect(panel.get_by_role("heading")).to_have_text(
            "2 of 4 servers may run out within 14 days, 1 more than now"
        )
        assert all("422" in complaint for complaint in watched.complaints)


async def test_room_of_servers_whose_capacity_nobody_knows_is_a_complaint_at_its_field(
    service: Service, done: str
) -> None:
    answer = await service.http.get("/pages/risk", params={"forecast_id": done, "capacity_add": "16"})
    assert answer.status_code == 422
    assert re.search(r'id="capacity_add-complaint">4 of the servers to which room is added have no', answer.text)


async def test_an_alert_rule_is_made_tested_switched_and_deleted(
    database_url: str, tmp_path: Path, browser: Browser
) -> None:
    with receiver(503) as hook:
        async with (
            serving(database_url, tmp_path, webhook_allow="127.0.0.1/32") as service,
            opened(browser, service.url) as watched,
        ):
            page = watched.page
            await page.goto("/")
            await page.get_by_role("navigation", name="Pages").get_by_role("link", name="Alerts").click()
            await expect(page.get_by_role("main")).to_contain_text("No rule yet. Make one below")
            form = page.locator("#rule")
            make = form.get_by_role("button", name="Make the rule")
            await form.get_by_label("Send to").fill("http://10.0.0.1/hook")
            await make.click()
            await expect(form.get_by_label("Name")).to_have_accessible_description(re.compile("at least 1 character"))
            await expect(form.get_by_label("Name")).to_be_focused()
            await form.get_by_label("Name").fill(HOSTILE)
            await make.click()
            await expect(form.get_by_label("Send to")).to_have_accessible_description(re.compile("10.0.0.1"))
            await expect(form.get_by_label("Name")).not_to_have_attribute("aria-invalid", "true")
            await expect(form.get_by_role("status")).to_contain_text("HEADROOM_WEBHOOK_ALLOW")
            await form.get_by_label("Send to").fill(hook.url)
            await form.get_by_label("When", exact=True).select_option("it stays over the threshold")
            await form.get_by_label("p90 over, days").fill("9")
            await make.click()
            await expect(form.get_by_label("When", exact=True)).to_have_accessible_description(
                "k must not be more than `of`"
            )
            await form.get_by_label("p90 over, days").fill("2")
            await form.get_by_text("More", exact=True).click()
            await form.get_by_label("Threshold").fill("85")
            await form.get_by_label("Only these servers").fill("a\nb")
            await form.get_by_label("Only when a server entered or left").check()
            await make.click()
            secret = form.locator(".secret")
            await expect(secret).to_have_text(re.compile(r"whsec_[A-Za-z0-9+/]{43}="))
            kept = await secret.inner_text()
            await form.get_by_role("link", name="I have kept it").click()
            rule = page.locator(".rule")
            await expect(rule).to_contain_text("When p90 is over the threshold on 2 of 7 days, and something changed")
            await expect(rule).to_contain_text("server id a, b · threshold 85")
            await expect(rule.get_by_role("heading")).to_have_text(HOSTILE)
            await expect(page.get_by_role("main")).to_contain_text("Nothing was sent yet")
            assert kept not in await page.content()

            await rule.get_by_role("button", name="Send a test").click()
            delivery = page.get_by_role("region", name="Alert deliveries").locator("tbody tr")
            await expect(delivery).to_contain_text("on its way")
            await expect(delivery).to_contain_text("test")
            await page.evaluate("window.sameDocument = true")
            assert await service.app.state.services.alerts.deliver()
            await expect(delivery).to_contain_text("503")
            assert await page.evaluate("window.sameDocument") is True
            assert len(hook.received) == 1
            await rule.get_by_role("button", name="Switch off").click()
            await expect(rule.get_by_role("button", name="Switch on")).to_be_visible()
            await expect(rule.locator(".status")).to_have_text("off")
            await expect(delivery).to_contain_text("the rule was switched off")
            await page.get_by_label("Status").select_option("delivered")
            await page.get_by_role("button", name="Show").click()
            await expect(page.get_by_role("main")).to_contain_text("Nothing was sent that fits.")
            for width in (400, 1280):
                await page.set_viewport_size({"width": width, "height": 900})
                await page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)
            assert await page.locator("img").count() == 0, "a rule's name became markup"

            await rule.get_by_role("button", name="Delete").click()
            assert watched.complaints.pop() == f"dialog: Delete the rule “{HOSTILE}” with all its deliveries?"
            await expect(rule).to_have_count(1)
            page.remove_listener("dialog", watched._dialog)
            page.once("dialog", lambda dialog: dialog.accept())
            await rule.get_by_role("button", name="Delete").click()
            await expect(page.get_by_role("main")).to_contain_text("No rule yet")
            # What a browser says of the three refusals is all that it says.
            assert len(watched.complaints) == 3
            assert all("422" in complaint for complaint in watched.complaints)


async def test_progress_arrives_without_a_reload_and_results_with_one(
    service: Service, dataset: str, browser: Browser
) -> None:
    forecast = await service.forecast(dataset, "seasonal_naive", "structural", name="live")
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/forecasts/{forecast}")
        first, second = page.locator("[data-run=seasonal_naive]"), page.locator("[data-run=structural]")
        await expect(first.get_by_role("progressbar", name="Progress of seasonal_naive")).to_have_js_property(
            "value", 0
        )
        await page.evaluate("window.sameDocument = true")
        await service.run(forecast, "seasonal_naive")
        await expect(first.locator("[data-status]")).to_have_text("succeeded")
        await expect(first.get_by_role("progressbar")).to_have_js_property("value", 1)
        await expect(second.locator("[data-status]")).to_have_text("queued")
        assert await page.evaluate("window.sameDocument") is True
        await service.run(forecast, "structural")
        await expect(page.get_by_role("heading", name="Comparison")).to_be_visible()
        assert await page.get_by_role("region", name="Comparison of the models").locator("tbody tr").count() == 2
        assert watched.complaints == []


async def test_from_a_file_to_a_submitted_forecast(service: Service, browser: Browser, tmp_path: Path) -> None:
    good, bad = tmp_path / "mine.csv", tmp_path / "bad.csv"
    good.write_text(history())
    bad.write_text("server_id,timestamp,cpu\na,2023-01-01,1\na,2023-01-01,2\n")
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto("/")
        upload, question = page.locator("#upload"), page.locator("#forecast")
        await upload.locator("[type=file]").set_input_files(bad)
        await upload.get_by_role("button", name="Upload").click()
        await expect(upload.get_by_role("status")).to_contain_text("rows", timeout=30_000)
        assert await upload.locator(".refused").count() == 1
        await upload.locator("[type=file]").set_input_files(good)
        await upload.get_by_role("button", name="Upload").click()
        await expect(upload.get_by_role("status")).to_contain_text("mine.csv: 4 servers, 488 rows", timeout=30_000)
        await expect(question.get_by_label("Dataset")).to_contain_text("mine.csv (4 servers)")
        await question.get_by_label("Metric").select_option("sessions")
        await question.get_by_label("Horizon").fill("21")
        await question.locator("[name=models][value=auto]").uncheck()
        await question.get_by_role("button", name="Submit").click()
        await expect(question.get_by_role("status")).to_have_text("Tick one model at least.")
        await question.get_by_label("seasonal_naive").check()
        await question.get_by_role("button", name="Submit").click()
        await page.wait_for_url("**/pages/forecasts/*")
        await expect(page.get_by_role("heading", level=1)).to_have_text("sessions")
        await page.get_by_role("button", name="Cancel the forecast").click()
        await expect(page.locator(".heading .status")).to_have_text("cancelled")
        # What a browser says of the answer 422 to the first upload is all that it says.
        assert len(watched.complaints) == 1
        assert "422" in watched.complaints[0]


async def test_canvas_says_what_it_would_cost_or_why_not_before_it_is_asked_for(
    service: Service, dataset: str, browser: Browser
) -> None:
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto("/")
        question = page.locator("#forecast")
        cap = question.get_by_label("Cost cap, dollars")
        await expect(cap).to_be_hidden()
        await question.get_by_label("canvas").check()
        await expect(cap).to_have_value("0.20")
        await expect(question.locator("[data-estimate]")).to_contain_text("would be skipped, and local models answer")
        await expect(question.locator("[data-estimate]")).to_contain_text("HEADROOM_AWS is off")
        await question.get_by_label("Horizon").fill(str(HORIZON))
        async with page.expect_request(lambda sent: sent.method == "POST" and sent.url.endswith("/forecasts")) as sent:
            await question.get_by_role("button", name="Submit").click()
        request = await sent.value
        assert re.fullmatch("[0-9a-f]{32}", (await request.all_headers())["idempotency-key"])
        assert request.post_data_json["max_cost_usd"] == 0.2
        await page.wait_for_url("**/pages/forecasts/*")
        await expect(page.locator("[data-run=canvas] [data-status]")).to_have_text("skipped")
        await page.get_by_role("button", name="Cancel the forecast").click()
        await expect(page.locator(".heading .status")).to_have_text("cancelled")
        await expect(page.get_by_role("heading", name="Canvas by hand")).to_have_count(0)
        assert watched.complaints == []


def exported(window: int = 0) -> bytes:
    """What Canvas would have said of the servers of `history`."""
    out = io.StringIO()
    lines = csv.writer(out)
    lines.writerow(["item_id", "timestamp", "p10", "p50", "p90"])
    first = DAYS[-1] + 1 - window * HORIZON
    for name, level in SERVERS.items():
        lines.writerows([name, first + step, level - 3, level, level + 3] for step in range(HORIZON))
    return out.getvalue().encode()


async def test_the_results_of_the_screens_are_brought_on_the_page(
    service: Service, dataset: str, browser: Browser, tmp_path: Path
) -> None:
    forecast = await service.forecast(dataset, "seasonal_naive", name="by hand")
    await service.run(forecast, "seasonal_naive")
    files = {name: tmp_path / f"{name}.csv" for name in ("good", "earlier", "bad")}
    files["good"].write_bytes(exported())
    files["earlier"].write_bytes(exported(window=1))
    files["bad"].write_bytes(exported(window=1))
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/forecasts/{forecast}")
        form = page.locator("[data-bring]")
        async with page.expect_download() as download:
            await form.get_by_role("link", name="the history before the last 14 days").click()
        saved = await (await download.value).path()
        assert saved.read_bytes().count(b",,") == HORIZON * len(SERVERS), "rows without a target"
        await form.get_by_label("Export of the forecast").set_input_files(files["bad"])
        await form.get_by_role("button", name="Bring the results").click()
        await expect(form.get_by_role("status")).to_contain_text("lack values", timeout=30_000)
        await form.get_by_label("Export of the forecast").set_input_files(files["good"])
        await form.get_by_label("Export for the score").set_input_files(files["earlier"])
        await form.get_by_role("button", name="Bring the results").click()
        await expect(page.locator("[data-run=canvas]")).to_contain_text("by hand", timeout=30_000)
        await expect(page.get_by_role("region", name="Comparison of the models")).to_contain_text("canvas")
        await expect(page.get_by_role("main")).to_contain_text("It may be brought again")
        assert [complaint for complaint in watched.complaints if "422" not in complaint] == []


async def test_an_emulated_aws_is_never_taken_for_aws(database_url: str, tmp_path: Path) -> None:
    async with serving(database_url, tmp_path, aws="emulated") as service:
        assert "AWS is emulated in this installation" in (await service.http.get("/")).text
        forecast = await service.forecast(await service.dataset(), "seasonal_naive")
        await service.run(forecast, "seasonal_naive")
        with psycopg.connect(database_url) as connection:  # as a run of canvas leaves it
            connection.execute("""UPDATE runs SET model = 'canvas', report = report || '{"emulated": true}'""")
            connection.execute("UPDATE forecasts SET best_model = 'canvas'")
        for address in ("/", *addresses(forecast)[1:]):
            assert 'class="flag" title="AWS is emulated here' in (await service.http.get(address)).text, address


async def test_results_are_saved_as_files(service: Service, done: str, browser: Browser) -> None:
    async with opened(browser, service.url) as watched:
        await watched.page.goto(f"/pages/forecasts/{done}")
        for form, begins in [("CSV", b'"server_id","model"'), ("Parquet", b"PAR1")]:
            async with watched.page.expect_download() as download:
                await watched.page.get_by_role("button", name=form).click()
            saved = await (await download.value).path()
            assert saved.read_bytes().startswith(begins)
        assert watched.complaints == []


async def test_the_keyboard_skips_to_the_content_and_shows_where_it_is(
    service: Service, done: str, browser: Browser
) -> None:
    async with opened(browser, service.url) as watched:
        page = watched.page
        await page.goto(f"/pages/risk?forecast_id={done}")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.get_by_label("Forecast")).to_be_focused()
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert await page.evaluate(outline) == "solid"


async def test_tables_and_filters_need_no_script(service: Service, done: str, browser: Browser) -> None:
    async with opened(browser, service.url, java_script_enabled=False) as watched:
        page = watched.page
        await page.goto(f"/pages/risk?forecast_id={done}")
        await page.get_by_label("Region").select_option("north")
        await page.get_by_label("Order").select_option("server_id")
        await page.get_by_role("button", name="Show").click()
        assert await page.locator("a.server").all_inner_texts() == ["web-1", "web-2"]


async def test_a_key_opens_the_pages_and_signing_out_shuts_them(
    database_url: str, tmp_path: Path, browser: Browser
) -> None:
    async with serving(database_url, tmp_path) as service, opened(browser, service.url) as watched:
        _, secret = await service.app.state.services.keys.create("pages", ["read"])
        page = watched.page
        await page.goto("/pages/risk?sort=max_p90")
        await page.get_by_label("API key").fill("hr_wrong")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("unknown or revoked")
        await page.get_by_label("API key").fill(secret)
        await page.keyboard.press("Enter")
        # Nothing has been forecast yet, which only someone who is signed in is told.
        await expect(page.get_by_role("heading", level=1)).to_have_text("Servers at risk")
        await expect(page.get_by_role("main")).to_contain_text("No forecast has succeeded yet")
        await page.goto("/")
        await expect(page.get_by_role("heading", level=1)).to_have_text("How much room is left?")
        assert await page.locator("form").count() == 0, "a key that may only read is offered no form to write"
        assert secret not in await page.evaluate(
            "document.cookie + JSON.stringify({...localStorage, ...sessionStorage})"
        )
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_no_page_has_an_inline_script_or_style_and_only_charts_relax_the_policy(
    service: Service, done: str
) -> None:
    for place, address in enumerate(addresses(done)):
        answer = await service.http.get(address)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        tags = re.findall(r"<[a-z][^>]*>", answer.text)
        assert not [tag for tag in tags if re.search(r"\s(style|on[a-z]+)\s*=", re.sub(r'"[^"]*"', '""', tag))]
        scripts = [tag for tag in tags if tag.startswith("<script")]
        assert all("src=" in tag or 'type="application/json"' in tag for tag in scripts)
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "script-src" not in policy
        if place < 2:
            assert policy == _HEADERS["Content-Security-Policy"]
        else:
            assert re.sub(r" style-src 'self' 'sha256-[^']+';", "", policy) == _HEADERS["Content-Security-Policy"]


async def test_who_may_see_what(database_url: str, tmp_path: Path) -> None:
    async with serving(database_url, tmp_path) as service:
        keys = service.app.state.services.keys
        secrets = {scope: (await keys.create(scope, scope.split()))[1] for scope in ("read", "write", "read write")}
        refused = await service.http.get("/")
        assert refused.status_code == 401
        assert 'id="sign-in"' in refused.text
        assert refused.headers["www-authenticate"].startswith("Bearer")
        held = {
            name: await service.http.get("/", headers={"Authorization": f"Bearer {key}"})
            for name, key in secrets.items()
        }
        assert {name: answer.status_code for name, answer in held.items()} == {
            "read": 200,
            "write": 403,
            "read write": 200,
        }
        assert {name: 'id="upload"' in answer.text for name, answer in held.items()} == {
            "read": False,
            "write": False,
            "read write": True,
        }
        assert (await service.http.get("/sign-in")).status_code == 200
        alerts = {
            name: await service.http.get("/pages/alerts", headers={"Authorization": f"Bearer {key}"})
            for name, key in secrets.items()
        }
        assert {name: answer.status_code for name, answer in alerts.items()} == {
            "read": 200,
            "write": 403,
            "read write": 200,
        }
        assert {name: 'id="rule"' in answer.text for name, answer in alerts.items()} == {
            "read": False,
            "write": False,
            "read write": True,
        }
        assert alerts["read"].headers["content-security-policy"] == _HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("/pages/forecasts/nonsense", 404, "nothing at"),
        (f"/pages/forecasts/{uuid.UUID(int=0)}", 404, "There is no forecast"),
        ("/pages/forecasts/{done}/servers/nobody", 404, "nobody"),
        ("/pages/forecasts/{done}/servers/web-1?model=prophet", 422, "has no run of prophet"),
        ("/pages/risk?threshold=much", 422, "is not a number"),
        ("/pages/risk?sort=beauty", 422, "?sort"),
        ("/pages/risk?cursor=forged", 400, "cursor"),
        ("/pages/alerts?status=lost", 422, "is no status of a delivery"),
        ("/pages/alerts?rule_id=nonsense", 404, "There is no alert rule nonsense"),
        ("/?forecast_id=nonsense", 404, "There is no forecast"),
    ],
)
async def test_an_error_is_a_page_too(service: Service, done: str, address: str, status: int, said: str) -> None:
    answer = await service.http.get(address.replace("{done}", done))
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert said in answer.text
    assert "Traceback" not in answer.text


async def test_a_metric_without_a_threshold_is_asked_for_one(service: Service, dataset: str) -> None:
    forecast = await service.forecast(dataset, "seasonal_naive", metric="sessions")
    await service.run(forecast, "seasonal_naive")
    for address in (f"/?forecast_id={forecast}", f"/pages/forecasts/{forecast}", f"/pages/risk?forecast_id={forecast}"):
        asked = await service.http.get(address)
        assert asked.status_code == 200
        assert 'name="threshold"' in asked.text
        assert 'class="server"' not in asked.text
        judged = await service.http.get(address, params={"forecast_id": forecast, "threshold": "7000"})
        assert 'class="server"' in judged.text
        assert "7,000" in judged.text
    server = await service.http.get(f"/pages/forecasts/{forecast}/servers/web-1")
    assert server.status_code == 200


async def test_pages_of_the_risk_table_hold_every_server_once(service: Service, done: str) -> None:
    seen, address = [], f"/pages/risk?forecast_id={done}&sort=server_id&limit=3"
    while address:
        answer = await service.http.get(address)
        assert answer.status_code == 200, answer.text
        seen += re.findall(r'class="server"[^>]*>([^<]*)</a>', answer.text)
        following = re.search(r'rel="next" href="([^"]*)"', answer.text)
        address = "/pages/risk" + following[1].replace("&amp;", "&") if following else ""
    assert len(seen) == len(SERVERS) == len(set(seen))


async def test_history_is_read_in_pages_with_its_gaps(service: Service) -> None:
    rows = ["server_id,timestamp,cpu_p95", *(f"a,{day},{i}" for i, day in enumerate(DAYS) if i != 3), "b,2022-09-01,1"]
    rows += [f"b,{day},{i}" for i, day in enumerate(DAYS) if i > 5]
    made = await service.http.post("/datasets", content="\n".join(rows), headers={"Content-Type": "text/csv"})
    address = f"/datasets/{made.json()['id']}/history"
    asked: dict[str, Any] = {"metric": "cpu_p95", "server_id": "a", "limit": 100}
    first = (await service.http.get(address, params=asked)).json()
    second = (await service.http.get(address, params=asked | {"cursor": first["next_cursor"]})).json()
    items = first["items"] + second["items"]
    assert second["next_cursor"] is None
    assert [item["timestamp"] for item in items] == [str(day) for day in DAYS]
    assert [item["value"] for item in items] == [None if i == 3 else float(i) for i in range(len(DAYS))]
    assert first["unit"] == "percent"
    for wrong in ({"metric": "mem"}, {"server_id": "c"}):
        refused = await service.http.get(address, params=asked | wrong)
        assert refused.status_code == 422
        assert [error["pointer"] for error in refused.json()["errors"]] == [f"?{next(iter(wrong))}"]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(None, "–"), (0.0, "0\u202f%"), (0.001, "< 1 %"), (0.834, "83\u202f%"), (0.999, "> 99 %"), (1.0, "100\u202f%")],
)
async def test_a_share_is_shown_as_percent(share: float | None, shown: str) -> None:
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (None, "–"),
        (1.0, "1\u202fday"),
        (12, "12\u202fdays"),
        (0.25, "6\u202fh"),
        (1.5, "36\u202fh"),
        (2.125, "2.1\u202fdays"),
    ],
)
async def test_a_runway_is_shown_in_days_or_hours(count: float | None, shown: str) -> None:
    assert days(count) == shown


@pytest.mark.parametrize("horizon", [1, 2, 90, 2200])
async def test_a_little_fan_stays_in_its_box_and_keeps_its_peaks(horizon: int) -> None:
    middle = np.full(horizon, 50.0)
    high = middle + 5
    high[horizon // 2] = 95.0
    drawn = fan(middle - 5, middle, high, 90.0)
    heights = [float(y) for y in re.findall(r"[\d.]+ (-?[\d.]+)", drawn.band)]
    assert 0 <= min(heights) < drawn.threshold, "the one step over the threshold is to be seen over it"
    assert max(heights) <= HEIGHT


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (LevelAtLeast("high"), "the level is high or very high"),
        (LevelAtLeast("very_high"), "the level is very high"),
        (RunwayUnder(30.0, "conservative"), "the runway is under 30\u202fdays, by p90"),
        (RunwayUnder(7.5, "expected"), "the runway is under 7.5\u202fdays, by p50"),
        (ProbabilityOver(0.5), "the breach probability is over 50\u202f%"),
        (DaysOver(3, 7, 0.95), "p95 is over the threshold on 3 of 7 days"),
    ],
)
async def test_a_condition_is_told_in_words(condition: Condition, said: str) -> None:
    assert in_words(condition) == said


@pytest.mark.parametrize("crowd", [1, 9_997])
async def test_the_bars_of_a_scenario_fill_its_picture_and_the_least_can_be_read(crowd: int) -> None:
    drawn = flow(
        {("normal", "normal"): crowd, ("normal", "high"): 1, ("high", None): 1, ("very_high", "high"): 1}, LEVELS
    )
    assert [(bar.level, bar.servers) for bar in drawn.before] == [("very_high", 1), ("high", 1), ("normal", crowd + 1)]
    assert [(bar.level, bar.servers) for bar in drawn.after] == [("high", 2), ("normal", crowd), (None, 1)]
    for bars in (drawn.before, drawn.after):
        assert min(bar.height for bar in bars) >= LEAST
        assert bars[0].y == 0
        assert bars[-1].y + bars[-1].height == pytest.approx(FLOW_HEIGHT, abs=0.2)
        assert all(first.y + first.height < second.y for first, second in itertools.pairwise(bars))
    assert sum(ribbon.servers for ribbon in drawn.ribbons) == crowd + 3


async def test_a_runway_that_the_horizon_does_not_reach_lies_behind_all_others() -> None:
    sooner, later = shift(1, 90, 90), shift(90, None, 90)
    assert sooner.before < (sooner.after or 0) < (later.after or 0)
    assert sooner.after == later.before
    assert shift(5, None, 90, retired=True).after is None
