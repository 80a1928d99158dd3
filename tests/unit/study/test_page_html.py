"""The page as a text: complete, closed to the network, and deaf to what results say."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.study.page.html import page_html
from megatron_ext.study.report.content import Report
from megatron_ext.study.report.make import make_report
from tests.support.study_on_disk import study_plan, write_study


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report(write_study(tmp_path_factory.mktemp("study"), skip=["rl-grpo-1"]), command="x")


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return page_html(report)


class Tags(HTMLParser):
    """Which tags a page has, with their attributes, and whether each is closed."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} is closed, {self.getpos()}"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_every_tag_is_closed_and_every_id_is_there_once(page: str) -> None:
    tags = Tags(page)
    assert tags.open == []
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = {str(attributes["href"])[1:] for attributes in tags.named("a")}
    assert anchors <= set(ids)


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    tags = Tags(page)
    assert [one for one in tags.found if "src" in one[1]] == []
    assert [one["href"] for one in tags.named("link")] == ["data:,"]
    assert re.findall(r"url\(|@import|https?://", page) == []
    assert "default-src 'none'" in page


def test_the_policy_lets_its_own_script_run_alone(page: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_tables_have_captions_and_headings(page: str) -> None:
    tags = Tags(page)
    assert len(tags.named("caption")) == len(tags.named("table"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in tags.named("th"))
    assert all("aria-label" in one or one.get("aria-hidden") == "true" for one in tags.named("svg"))


def test_what_has_not_run_is_said(page: str) -> None:
    assert "rl lmq-shq-grpo, seed 2 of 2" in page
    assert "nobody has begun it" in page


def test_a_study_that_has_not_run_makes_a_page_too(tmp_path: Path) -> None:
    page = page_html(make_report(study_plan(tmp_path / "runs"), command="x"))
    assert Tags(page).open == []
    # 7 rows; 3 tasks and 3 means. 8 stages and 7 evaluations of two seeds.
    assert sum(one.get("class") == "num missing" for one in Tags(page).named("td")) == 7 * 6
    assert page.count("nobody has begun it") == 2 * 8
    assert page.count("its stage is not finished") == 2 * 7
    assert "Not known yet" in page


def hostile(number: int) -> str:
    return f"</script><script>alert({number})</script><img src=x onerror=alert(0)>\"'"


def test_hostile_texts_are_shown_and_not_run(report: Report) -> None:
    def changed(parts: tuple[Any, ...], **texts: Any) -> tuple[Any, ...]:
        return tuple(part.model_copy(update=texts) for part in parts)

    parts: dict[str, object] = {
        "rows": tuple(
            row.model_copy(update={"label": f"{row.label}{hostile(1)}", "arms": (hostile(2),)}) for row in report.rows
        ),
        "readings": changed(report.readings, note=hostile(3)),
        "missing": changed(report.missing, reason=hostile(4), what=hostile(5), log=hostile(6)),
        "findings": changed(report.findings, says=hostile(7), name=hostile(8)),
        "curves": changed(report.curves, label=hostile(9), source=hostile(10), arms=(hostile(11),)),
        "graph": changed(report.graph, label=hostile(12), arms=(hostile(13),)),
        "contamination": changed(report.contamination, notes=(hostile(14),)),
        "findings_notes": (hostile(15),),
        "note": hostile(16),
        "study": hostile(17),
        "headlines": (),
    }
    page = page_html(report.model_copy(update=parts))
    tags = Tags(page)
    assert len(tags.named("script")) == 1
    assert tags.named("img") == []
    assert [one for one in tags.found if any(name.startswith("on") for name in one[1])] == []
    assert [number for number in range(1, 18) if f"&lt;script&gt;alert({number})" not in page] == []
