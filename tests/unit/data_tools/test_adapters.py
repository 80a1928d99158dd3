"""Records of each data set into documents and conversations; the rows are in tests/data/adapters."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.adapters import NAMES, adapter_named
from data_tools.adapters.adapter import Item
from data_tools.errors import DataError, UsageError
from data_tools.inputs import find_inputs, open_part
from data_tools.parts import Part
from data_tools.readers import BadRecord
from data_tools.records import Conversation, Document, Turn, as_document

ROWS = Path(__file__).parents[2] / "data/adapters"

USER, TWO = Turn("user", "1 + 1?"), Turn("assistant", "2")
EASY = Turn("assistant", "<think>\nEasy.\n</think>\n\n2")
BRIEF = Turn("system", "Be brief.")
CALL = '[{"name":"weather","arguments":{"city":"Bonn"}}]'
WEATHER = (
    Turn("user", "Weather?"),
    Turn("assistant", "", CALL),
    Turn("tool", "rain"),
    Turn("assistant", "It rains."),
)


def hash_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def turns_hash(*turns: Turn) -> str:
    return hash_of(orjson.dumps([[turn.role, turn.content, turn.tool_calls] for turn in turns]).decode())


def talk(*turns: Turn) -> Conversation:
    """A conversation of which only the turns count: its id is that of its content."""
    return Conversation(turns_hash(*turns), turns)


EXPECTED: dict[str, list[Item | str]] = {
    "text": [
        Document("a", "First."),
        Document("b", "Second."),
        Document("7", "Third."),
        Document(hash_of("Fourth."), "Fourth."),
        Document(turns_hash(USER, TWO), "1 + 1?\n\n2", answer="2"),
        "empty",
        "not a string",
        "not a string",
        "missing key",
    ],
    "messages": [
        Conversation("a", (BRIEF, USER, TWO)),
        Conversation(
            "b", (Turn("user", "Capital of France?"), Turn("assistant", "<think>\nEasy.\n</think>\n\nParis."))
        ),
        Conversation("c", WEATHER, tools='[{"type":"function","function":{"name":"weather"}}]'),
        "bad conversation",
        "empty",
        "bad conversation",
        "not a string",
        "bad conversation",
        "empty",
        "bad conversation",
        "bad conversation",
        "malformed",
    ],
    "sharegpt": [
        Conversation("a", (BRIEF, USER, TWO)),
        talk(USER, TWO),
        "bad conversation",
        "bad conversation",
        "empty",
        "bad conversation",
        "empty",
        "bad conversation",
    ],
    "prompt-completion": [
        Conversation("a", (USER, TWO)),
        Conversation("b", (BRIEF, USER, TWO)),
        "empty",
        "not a string",
        "missing key",
    ],
    "openthoughts3": [
        Conversation(turns_hash(USER, EASY), (USER, EASY), "math"),
        Conversation(
            turns_hash(Turn("user", "Print 1."), Turn("assistant", "print(1)")),
            (Turn("user", "Print 1."), Turn("assistant", "print(1)")),
            "code",
        ),
        Conversation(
            turns_hash(Turn("user", "H2O?"), Turn("assistant", "Water.")),
            (Turn("user", "H2O?"), Turn("assistant", "Water.")),
            "science",
        ),
        talk(Turn("user", "Hello"), Turn("assistant", "Hi")),
        "bad conversation",
        "bad conversation",
    ],
    "nemotron-pretraining-sft-v1": [
        Conversation("a", (USER, TWO)),
        Conversation("b", (BRIEF, USER, TWO, Turn("user", "2 + 2?"), Turn("assistant", "4"))),
        Document("c", "input: 1 + 1? output: 2"),
        Document(hash_of("T5 fills <extra_id_1> in."), "T5 fills <extra_id_1> in."),
        "bad conversation",
        "bad conversation",
        "empty",
        "bad conversation",
        "not a string",
    ],
    "nemotron-pretraining-specialized-v1": [Document("a", "Let x be 1."), "empty", "not a string"],
    "nemotron-cc-v2": [Document(hash_of("A page."), "A page."), "not a string"],
    "nemotron-cc-math-v1": [Document(hash_of("$x^2$"), "$x^2$", "math"), "empty"],
    "nemotron-pretraining-code-v1": [Document(hash_of("print(1)"), "print(1)", "code"), "not a string"],
    "nemotron-post-training-v1": [
        Conversation("a", (USER, EASY), "math"),
        Conversation("b", (Turn("user", "H2O?"), Turn("assistant", "Water.")), "science"),
        Conversation("c", WEATHER),
        "empty",
        "empty",
    ],
    "nemotron-post-training-v2": [
        Conversation("a", (USER, EASY), "math"),
        Conversation("b", (Turn("user", "H2O?"), Turn("assistant", "Water."))),
        "empty",
    ],
    "nemotron-crossthink": [
        Document(hash_of("Think.\n\n1 + 1?\n\n2"), "Think.\n\n1 + 1?", answer="2"),
        "no answer",
        "no answer",
        "empty",
    ],
}


def read(path: Path, name: str) -> list[Item | str]:
    """Every record of a file: what it says, or the reason why it says nothing."""
    part = Part(find_inputs([path]).files[0])
    reads = adapter_named(name)
    convert = reads.for_file(path)
    said: list[Item | str] = []
    for block in open_part(part, reads.columns).blocks():
        for raw in block.records:
            try:
                said.append(convert(raw))
            except BadRecord as error:
                said.append(error.reason)
    return said


def test_every_adapter_has_rows_here() -> None:
    assert {path.stem for path in ROWS.glob("*.jsonl")} == set(EXPECTED) == set(NAMES)


@pytest.mark.parametrize("name", EXPECTED)
def test_rows_of_jsonl_say_what_they_should(name: str) -> None:
    assert read(ROWS / f"{name}.jsonl", name) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"text", "messages", "prompt-completion"}))
def test_rows_of_parquet_say_the_same(name: str, tmp_path: Path) -> None:
    rows = [orjson.loads(line) for line in (ROWS / f"{name}.jsonl").read_bytes().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", name) == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "folder", "domain"),
    [
        ("nemotron-pretraining-sft-v1", "Nemotron-SFT-Code", "code"),
        ("nemotron-pretraining-sft-v1", "Nemotron-SFT-MATH", "math"),
        ("nemotron-pretraining-sft-v1", "Nemotron-SFT-General", "general"),
        ("nemotron-pretraining-specialized-v1", "Nemotron-Pretraining-Math-Textbooks", "math"),
        ("nemotron-pretraining-specialized-v1", "Nemotron-Pretraining-STEM-SFT", "science"),
        ("nemotron-pretraining-specialized-v1", "Nemotron-Pretraining-Wiki-Rewrite", "general"),
        ("nemotron-crossthink", "Nemotron-CrossThink-Math.jsonl", "math"),
    ],
)
def test_the_folder_tells_the_domain(name: str, folder: str, domain: str) -> None:
    line = (ROWS / f"{name}.jsonl").read_bytes().splitlines()[0]
    assert adapter_named(name).for_file(Path("data") / folder / "0.parquet")(line).domain == domain


def test_what_the_wrong_adapter_reads_ends_at_the_first_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"question": "q", "answer": "a"}\n')
    with pytest.raises(DataError) as caught:
        read(path, "openthoughts3")
    assert str(caught.value) == (
        f'{path}: adapter openthoughts3: its first record: has no column "conversations"; it has: answer, question; '
        "give the --adapter of this data set, or --key with the adapter text"
    )


def test_what_the_wrong_adapter_reads_of_parquet_names_all_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"repo": ["r"], "path": ["p"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r'a\.parquet: has no column "text"; it has: path, repo; give'):
        read(tmp_path / "a.parquet", "nemotron-pretraining-code-v1")


def test_text_is_taken_from_the_key_that_is_given() -> None:
    convert = adapter_named("text", key="body").for_file(Path("a"))
    assert convert(b'{"body": "b", "text": "t", "id": "i"}') == Document("i", "b")
    assert convert(b'{"body": [{"from": "human", "value": "q"}], "id": "i"}') == Document("i", "q")
    with pytest.raises(BadRecord, match='missing key: no key "body"; keys: id, text'):
        convert(b'{"text": "t", "id": 1}')


def test_equal_content_has_an_equal_id_and_other_content_another() -> None:
    convert = adapter_named("sharegpt").for_file(Path("a"))
    first, same, other = (
        convert(b'{"conversations": [{"from": "human", "value": "%s"}, {"from": "gpt", "value": "2"}]}' % question)
        for question in (b"q", b"q", b"r")
    )
    assert first.id == same.id != other.id


def test_a_conversation_has_one_id_whichever_adapter_reads_it() -> None:
    line = (ROWS / "openthoughts3.jsonl").read_bytes().splitlines()[0]
    ids = {adapter_named(name).for_file(Path("a"))(line).id for name in ("text", "sharegpt", "openthoughts3")}
    assert ids == {turns_hash(USER, EASY)}


def test_a_trace_belongs_to_the_answer() -> None:
    item = adapter_named("openthoughts3").for_file(Path("a"))(
        (ROWS / "openthoughts3.jsonl").read_bytes().splitlines()[0]
    )
    assert isinstance(item, Conversation)
    assert as_document(item).answer == "<think>\nEasy.\n</think>\n\n2"


def test_an_adapter_that_does_not_exist_is_answered_with_near_names() -> None:
    with pytest.raises(UsageError, match="--adapter: no adapter 'openthoughts'; near ones: openthoughts3"):
        adapter_named("openthoughts")
    with pytest.raises(UsageError, match="--adapter: no adapter 'qqq'; there are: messages, nemotron-cc-math-v1, "):
        adapter_named("qqq")


def test_only_text_takes_a_key() -> None:
    with pytest.raises(UsageError, match="--key: 'body': the adapter sharegpt knows its columns"):
        adapter_named("sharegpt", key="body")
