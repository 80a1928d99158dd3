"""The graph as a picture: every stage a box, every parent a line, every arm at its end."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from data_tools.errors import UsageError
from megatron_ext.study.graph import dot, ending_arms, svg, write_graph
from megatron_ext.study.make import make_study_plan
from tests.support.pencil_project import PencilProject

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_has_a_box_for_each_stage_and_a_line_to_each_parent(study: PencilProject) -> None:
    tree = ElementTree.fromstring(svg(make_study_plan("study.yaml")))
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert len(list(tree.iter(f"{SVG}rect"))) == 1 + 5  # the background too
    assert len(list(tree.iter(f"{SVG}path"))) == 4
    assert sorted(text for text in texts if text in ("base", "plain", "more", "chat")) == [
        "base",
        "chat",
        "chat",
        "more",
        "more",  # the arm too
        "plain",
        "plain",
    ]


def test_no_two_boxes_of_the_picture_overlap(study: PencilProject) -> None:
    tree = ElementTree.fromstring(svg(make_study_plan("study.yaml", seeds=3)))
    _, *boxes = tree.iter(f"{SVG}rect")
    corners = [(float(box.get("x", "")), float(box.get("y", "")), float(box.get("height", ""))) for box in boxes]
    for number, (left, top, height) in enumerate(corners):
        assert all(left != x or abs(top - y) >= height for x, y, _ in corners[:number])


def test_every_box_lies_in_the_picture(study: PencilProject) -> None:
    tree = ElementTree.fromstring(svg(make_study_plan("study.yaml", seeds=3)))
    picture, *boxes = (
        [float(box.get(key, 0)) for key in ("x", "y", "width", "height")] for box in tree.iter(f"{SVG}rect")
    )
    assert all(left + width <= picture[2] and top + height <= picture[3] for left, top, width, height in boxes)


def test_the_graphviz_file_names_stages_by_id_and_arrows_by_both(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml")
    text = dot(plan)
    arrows = re.findall(r'"(\S+)" -> "(\S+)";', text)
    assert sorted(arrows) == sorted((stage.parent, stage.stage_id) for stage in plan.stages if stage.parent)
    assert all(f'"{stage.stage_id}" [label=' in text for stage in plan.stages)


def test_an_arm_ends_with_its_last_stage_in_every_replicate(study: PencilProject) -> None:
    plan = make_study_plan("study.yaml", seeds=2)
    for stage in plan.stages:
        if stage.recipe == "base.yaml":
            assert ending_arms(plan, stage) == []
        if stage.recipe == "more.yaml":
            assert ending_arms(plan, stage) == ["more"]


def test_a_picture_of_another_kind_is_refused(study: PencilProject) -> None:
    with pytest.raises(UsageError, match=r"--graph study\.png: name a file that ends in \.dot or \.svg"):
        write_graph(make_study_plan("study.yaml"), Path("study.png"))
