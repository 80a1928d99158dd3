"""Shapes of conversations: which templates have them, and that they give the text and spans of the template."""

from __future__ import annotations

import pytest

from data_tools import chat_shapes
from data_tools.chat_shapes import Shape, Shapes
from data_tools.chat_template import ChatTemplate
from data_tools.chat_template_files import SHIPPED_TEMPLATE

ROLES = ("system", "user", "assistant", "user", "assistant")
CONTROL = ("<|end|>", "<|im_start|>", "<|im_end|>")
NAMED = {"bos_token": "<s>"}
SAID = [
    ["Be brief.", "1 + 1?", "2", "2 + 2?", "4"],
    ["  Be\n", "\ta  b ", "\n\n", " {{ x }} %s </think>", "é☃\u2003"],
    ["<|end|>", "<|im_end|>", "a<|end|>b", "&<>\"'", "\ufdd40\ufdd4"],
]


NO_TURNS = "{% generation %}{% endgeneration %}"
"""Else a template that rewrites earlier turns is refused."""


def each(body: str) -> str:
    """A template that does the same for every turn."""
    return "{% for m in messages %}" + body + "<|end|>\n{% endfor %}"


PUTS_OUT = {
    "put out": each("{{ m.role }}: {{ m.content }}"),
    "joined with text": each("{{ bos_token + m['role'] + '\n' + m['content'] + '!' }}"),
    "trimmed": each("{{ m.content | trim + '!' }}"),
    "stripped": each("{{ '>' + m.content.strip() }}"),
    "twice": each("{{ m.content }}|{{ m.content.strip() }}"),
    "in another order": NO_TURNS + "{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}",
    "only some": NO_TURNS + "{{ messages[1].content }}{{ messages[-1].content }}",
    "kept under a name": "{% set first = messages[0].content | trim %}{{ first }}\n" + each("{{ m.content + first }}"),
    "put into a block": each("{% set said %}<{{ m.content }}>{% endset %}{{ said }}"),
    "by a macro": "{% macro say(m) %}<{{ m.content }}>{% endmacro %}" + each("{{ say(m) }}"),
    "if there is any": each("{% if m.content and m.content is string %}{{ m.content }}{% endif %}"),
    "by default": each("{{ m.content | default('') }}{{ m.content or '-' }}"),
    "by its place": NO_TURNS + each("{% if loop.last %}{{ m.content }}{% else %}{{ loop.index }}{% endif %}"),
    "marked": each("{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!{% endgeneration %}{% endif %}"),
    "shipped": SHIPPED_TEMPLATE.read_text(),
}  # fmt: skip

LOOKS = {
    "length": "{% if m.content | length > 9 %}long{% endif %}",
    "comparison": "{% if m.content == '2' %}two{% endif %}",
    "comparison, turned round": "{% if '2' != m.content %}two{% endif %}",
    "order": "{% if m.content < 'b' %}a{% endif %}",
    "membership": "{% if '?' in m.content %}asks{% endif %}",
    "membership of it": "{% if m.content in '2 4' %}number{% endif %}",
    "membership in a list": "{% if m.content in ['2'] %}number{% endif %}",
    "key": "{{ {'2': 'two'}[m.content] }}",
    "name of an attribute": "{% if loop[m.content] %}x{% endif %}",
    "slice": "{{ m.content[1:] }}",
    "character": "{{ m.content[0] }}",
    "loop": "{% for c in m.content %}{{ c }},{% endfor %}",
    "method": "{% if m.content.startswith('2') %}two{% endif %}",
    "attribute": "{% if m.content.upper %}x{% endif %}",
    "split": "{{ m.content.split('</think>')[-1] }}",
    "characters stripped": "{{ m.content.strip('2') }}",
    "one side stripped": "{{ m.content.lstrip() }}",
    "stripped with text": "{{ (m.content + ' a') | trim }}",
    "emptiness of what was stripped": "{% if m.content | trim %}x{% endif %}",
    "emptiness of what was put together": "{% set said %}{{ m.content | trim }}{% endset %}{% if said %}x{% endif %}",
    "filter": "{{ m.content | upper }}",
    "number": "{{ m.content | int }}",
    "filter with it": "{{ 'a2' | replace(m.content, 'x') }}",
    "format": "{{ '%s' % m.content }}",
    "test": "{% if m.content is lower %}x{% endif %}",
    "JSON": "{{ m | tojson }}",
    "text of a list": "{{ messages | string }}",
    "joined list": "{{ messages | map(attribute='content') | join(' ') }}",
    "output read again": "{% set said %}{{ m.content }}{% endset %}{% if '2' in said %}two{% endif %}",
    "output of a macro read again": "{% macro say() %}{{ m.content }}{% endmacro %}{{ say() | length }}",
    "escapes": "{% autoescape true %}{{ m.content }}{% endautoescape %}",
    "joined with markup": "{{ m.content + ('<b>' | safe) }}",
    "markup joined with it": "{{ ('<b>' | safe) + m.content }}",
    "changes between turns": "{% if loop.changed(m.content) %}x{% endif %}",
    "chance": "{{ [1, 2] | random }}",
    "refusal": "{{ raise_exception('no') }}",
}


def shapes(source: str) -> Shapes:
    return Shapes(source, control_tokens=CONTROL, variables=NAMED)


def shape_of(source: str, roles: tuple[str, ...] = ROLES) -> Shape:
    shape = shapes(source).of(roles)
    assert shape is not None
    return shape


@pytest.mark.parametrize("contents", SAID, ids=["plain", "white space and signs", "tokens and marks"])
@pytest.mark.parametrize("name", PUTS_OUT)
def test_a_filled_shape_is_what_the_template_makes(name: str, contents: list[str]) -> None:
    template = ChatTemplate(PUTS_OUT[name], control_tokens=CONTROL, variables=NAMED)
    messages = [{"role": role, "content": said} for role, said in zip(ROLES, contents, strict=True)]
    assert shape_of(PUTS_OUT[name]).filled(contents) == template.render(messages, None, protects=False)


@pytest.mark.parametrize("name", LOOKS)
def test_a_template_that_looks_at_what_is_said_has_no_shape(name: str) -> None:
    assert shapes(each(LOOKS[name])).of(ROLES) is None
    assert shapes(each("")).of(ROLES) is not None


def test_a_shape_is_the_text_between_what_is_said() -> None:
    shape = shape_of(each("{{ '[' + m.content.strip() + ']' }}"), ("assistant",))
    assert shape.parts[::2] == ["[", "]<|end|>\n"]
    assert shape.said == [(0, True)]
    assert shape.filled([" a "]) == ("[a]<|end|>\n", [(0, 10)])


def test_shapes_are_learned_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_shapes, "MOST_SHAPES", 1)
    known = shapes(each("{{ m.content }}"))
    assert known.of(("user",)) is known.of(("user",)) is not None
    assert known.of(("user", "assistant")) is None
