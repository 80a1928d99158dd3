"""The report's page in a real browser: silent, closed to the network, and doing what its buttons say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from megatron_ext.study.page.html import page_html
from megatron_ext.study.report.make import make_report
from megatron_ext.study.report.numbers import Cell, Estimate
from tests.support.chromium import OpenPage, chromium, open_page
from tests.support.study_on_disk import write_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.system]

AFTER_SFT = ".stage-panel[data-stage=sft] table.results"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a study with two seeds, of which one was not trained with rewards."""
    folder = tmp_path_factory.mktemp("a study")
    report = make_report(write_study(folder, skip=["rl-grpo-1"]), command="x")
    page = folder / "report.html"
    page.write_text(page_html(report))
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[OpenPage]:
    one = open_page(browser, file)
    yield one
    one.page.close()


def names(opened: OpenPage) -> list[str]:
    cells = opened.page.locator(f"{AFTER_SFT} tbody th").all_inner_texts()
    return [text.split()[0] for text in cells]


def colours(opened: OpenPage) -> tuple[str, str]:
    found = opened.page.evaluate(
        "(([style]) => [style.backgroundColor, style.color])([getComputedStyle(document.body)])"
    )
    return found[0], found[1]


def luminance(colour: str) -> float:
    """Of WCAG 2.1."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_is_silent_and_asks_for_nothing(opened: OpenPage, file: Path) -> None:
    for button in opened.page.locator("button").all():
        if button.is_visible():
            button.click()
    assert opened.said == []
    assert opened.asked == [file.as_uri()]


def test_the_stage_with_arms_to_compare_is_shown_first_and_the_switch_shows_another(opened: OpenPage) -> None:
    visible = ".stage-panel:not(.off) table.results"
    assert opened.page.locator(visible).count() == 1
    assert names(opened) == ["base-shq", "ldq-shq", "lmq-shq"]
    opened.page.get_by_role("button", name="after pretraining").click()
    assert opened.page.locator(f"{visible} tbody tr").count() == 3
    assert opened.page.locator(AFTER_SFT).is_hidden()
    assert opened.page.locator("#bars .stage-panel:not(.off)").get_attribute("data-stage") == "pretrain"


def test_a_click_sorts_by_number_and_another_turns_it_round(opened: OpenPage) -> None:
    heading = opened.page.locator(f"{AFTER_SFT} thead").get_by_role("button", name="average")
    heading.click()
    assert names(opened) == ["lmq-shq", "ldq-shq", "base-shq"]
    assert opened.page.locator(f"{AFTER_SFT} th[aria-sort=descending]").count() == 1
    heading.click()
    assert names(opened) == ["base-shq", "ldq-shq", "lmq-shq"]


def turned_round(cell: Cell) -> Cell:
    """With the difference that a loss has: positive where it is lower."""
    if cell.delta is None:
        return cell
    return cell.model_copy(update={"delta": Estimate(value=-cell.delta.value)})


def test_a_first_click_puts_the_best_loss_on_top(browser: Browser, tmp_path: Path) -> None:
    report = make_report(write_study(tmp_path, items=20), command="x")
    loss = {"is_higher_better": False, "unit": "nats per token"}
    metrics = tuple(one.model_copy(update=loss) if one.name == "average" else one for one in report.metrics)
    rows = tuple(
        row.model_copy(update={"cells": tuple(map(turned_round, row.cells))}) if row.stage == "sft" else row
        for row in report.rows
    )
    file = tmp_path / "report.html"
    file.write_text(page_html(report.model_copy(update={"metrics": metrics, "rows": rows})))
    opened = open_page(browser, file)
    opened.page.locator(f"{AFTER_SFT} thead").get_by_role("button", name="average").click()
    first = [names(opened)[0]]
    opened.page.get_by_role("button", name="differences to the baseline").click()
    opened.page.locator(f"{AFTER_SFT} thead").get_by_role("button", name="math").click()
    opened.page.locator(f"{AFTER_SFT} thead").get_by_role("button", name="average").click()
    first.append(names(opened)[0])
    opened.page.close()
    assert first == ["base-shq", "base-shq"]


def test_sorting_works_from_the_keyboard(opened: OpenPage) -> None:
    opened.page.locator(f"{AFTER_SFT} thead").get_by_role("button", name="average").focus()
    opened.page.keyboard.press("Enter")
    assert names(opened)[0] == "lmq-shq"


def test_values_become_differences_to_the_baseline(opened: OpenPage) -> None:
    cell = opened.page.locator(f"{AFTER_SFT} tbody tr").nth(2).locator("td.main")
    value = cell.inner_text()
    opened.page.get_by_role("button", name="differences to the baseline").click()
    assert cell.inner_text() != value
    assert cell.inner_text().startswith("+")
    assert opened.page.locator(f"{AFTER_SFT} tbody tr").nth(0).locator("td.main").inner_text() == "baseline"


def test_a_name_in_the_legend_hides_its_lines(opened: OpenPage) -> None:
    group = opened.page.locator(".curve-group").nth(1)
    lines = group.locator("g[data-series='0']")
    assert lines.count() >= 3
    assert lines.first.is_visible()
    group.get_by_role("button", name="base-shq").click()
    assert not any(line.is_visible() for line in lines.all())
    group.get_by_role("button", name="base-shq").click()
    assert lines.first.is_visible()


def test_dark_and_light_follow_the_system_and_the_button(browser: Browser, file: Path) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        opened = open_page(browser, file, scheme=scheme)
        seen[scheme] = colours(opened)
        opened.page.locator("#theme").click()
        seen[f"{scheme} turned"] = colours(opened)
        opened.page.close()
    assert luminance(seen["light"][0]) > 0.8
    assert luminance(seen["dark"][0]) < 0.05
    assert seen["light turned"] == seen["dark"]
    assert seen["dark turned"] == seen["light"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(browser: Browser, file: Path, scheme: str) -> None:
    opened = open_page(browser, file, scheme=scheme)
    pairs = opened.page.evaluate(
        """() => {
          const style = (one) => getComputedStyle(one);
          const hasText = (one) => [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
          const behind = (one) => {
            while (style(one).backgroundColor === "rgba(0, 0, 0, 0)") one = one.parentElement;
            return style(one).backgroundColor;
          };
          const colour = (one) => one.namespaceURI.includes("svg") ? style(one).fill : style(one).color;
          const texts = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility() && hasText(one));
          return texts.map((one) => [colour(one), behind(one)]);
        }"""
    )
    opened.page.close()
    assert len(pairs) > 200
    weak = {(one, behind) for one, behind in map(tuple, pairs) if contrast(one, behind) < 4.5}  # WCAG 2.1, level AA
    assert weak == set()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_its_window(browser: Browser, file: Path, width: int) -> None:
    opened = open_page(browser, file, width=width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    small = opened.page.evaluate(
        """() => [...document.querySelectorAll(".chart text")].map((one) => one.getBoundingClientRect().height)"""
    )
    opened.page.close()
    assert min(small) >= 9  # pixels: words of charts stay legible


def test_without_scripts_every_table_is_there(browser: Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert [table.is_visible() for table in page.locator("table.results").all()] == [True, True, True]
    context.close()


def test_it_prints_everything_on_light_paper(browser: Browser, file: Path, tmp_path: Path) -> None:
    opened = open_page(browser, file, scheme="dark")
    closed = "document.querySelectorAll('details:not([open])').length"
    look = f"addEventListener('beforeprint', () => {{ window.closedOnPaper = {closed}; }})"
    opened.page.evaluate(look)  # behind what the page does itself
    printed = tmp_path / "report.pdf"
    opened.page.pdf(path=str(printed), prefer_css_page_size=True)
    assert printed.read_bytes().startswith(b"%PDF")
    assert opened.page.evaluate("window.closedOnPaper") == 0
    assert opened.page.evaluate(closed) > 0  # as it was before
    opened.page.emulate_media(media="print")
    assert luminance(colours(opened)[0]) == 1.0
    assert opened.page.locator("table.results").count() == 3
    assert all(table.is_visible() for table in opened.page.locator("table.results").all())
    assert opened.page.locator(".controls").is_hidden()
    opened.page.close()
