"""A blend file with its datasets becomes a plan whose every number a pencil can check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.blend_export import export, train_pairs, valid_pairs, warnings
from data_tools.errors import DataError
from data_tools.resolved_blend import ResolvedBlend, plan_blend, write_plan
from tests.support.pencil_project import PencilProject, make_pencil_project

REPOSITORY = Path(__file__).parents[3]
BLENDS = REPOSITORY / "recipes" / "blends"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PencilProject:
    """Source `a` lies in shards of 300 and 100 tokens, `b` is one dataset of 400."""
    monkeypatch.chdir(tmp_path)
    made = make_pencil_project(Path())
    for path in Path("data").glob("a.*"):
        if "validation" not in path.name:
            path.unlink()
    made.write_dataset("a-00000", tokens=300)
    made.write_dataset("a-00001", tokens=100)
    Path("blend.yaml").write_text(
        "blend: pencil\nentries:\n  - {source: a.yaml, share: 0.75, max_epochs: 2}\n  - {source: b.yaml, share: 0.25}\n"
    )
    return made


def plan(tokens: int = 640) -> ResolvedBlend:
    return plan_blend("blend.yaml", tokens=tokens, sequence_length=16, data_root="data")


def test_samples_are_spread_over_shards_in_proportion_to_tokens(project: PencilProject) -> None:
    first, second = plan().sources
    assert [(shard.prefix, shard.samples) for shard in first.shards] == [("data/a-00000", 23), ("data/a-00001", 7)]
    assert [(shard.prefix, shard.samples) for shard in second.shards] == [("data/b", 10)]
    assert (first.has_tokens, first.samples, first.tokens, first.epochs, first.max_epochs) == (400, 30, 480, 1.2, 2)


def test_the_written_plan_loads_to_the_same_plan(project: PencilProject) -> None:
    made = plan()
    assert ResolvedBlend.model_validate_json(write_plan(Path(), made).read_bytes()) == made


def test_a_shard_too_small_for_a_sample_is_left_out_and_said(project: PencilProject) -> None:
    project.write_dataset("a-00002", tokens=1)
    made = plan()
    assert made.notes == ("shard data/a-00002 is too small for a sample and gives none.",)
    assert "data/a-00002" not in [prefix for _, prefix in train_pairs(made)]


def test_datasets_of_two_tokenizers_are_refused(project: PencilProject) -> None:
    path = Path("data/b.manifest.json")
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(DataError, match="data/b: made with tokenizer 'tokenizer'"):
        plan()


def test_one_content_in_two_sources_is_refused(project: PencilProject) -> None:
    for suffix in (".bin", ".idx", ".manifest.json"):
        Path(f"data/b{suffix}").write_bytes(Path(f"data/a-00001{suffix}").read_bytes())
    with pytest.raises(DataError, match="data/b: holds the same tokens as data/a-00001"):
        plan(160)


def test_a_source_that_is_neither_built_nor_declared_is_refused(project: PencilProject) -> None:
    Path("data/b.manifest.json").unlink()
    with pytest.raises(DataError, match="source 'b' is not built yet"):
        plan()


def test_a_declared_size_makes_a_provisional_plan_that_cannot_be_exported(project: PencilProject) -> None:
    Path("data/b.manifest.json").unlink()
    with Path("b.yaml").open("a") as file:
        file.write("declared_tokens: 400\n")
    made = plan()
    assert made.provisional
    assert [source.declared for source in made.sources] == [False, True]
    with pytest.raises(DataError, match="--export: b: declared, not built"):
        export(made, "megatron-args", Path())


def test_megatron_arguments_carry_whole_samples_as_weights(project: PencilProject) -> None:
    assert export(plan(), "megatron-args", Path()).read_text() == (
        "--data-path 23 data/a-00000 7 data/a-00001 10 data/b\n--split 100,0,0\n--seq-length 16\n--train-samples 40\n"
    )


def test_per_split_json_has_a_key_for_each_split(project: PencilProject) -> None:
    assert json.loads(export(plan(), "per-split-json", Path()).read_bytes()) == {
        "train": ["23", "data/a-00000", "7", "data/a-00001", "10", "data/b"],
        "valid": ["30", "data/a.validation", "10", "data/b.validation"],
        "test": None,
    }


def test_bridge_takes_prefixes_and_weights_apart(project: PencilProject) -> None:
    written = json.loads(export(plan(), "bridge", Path()).read_bytes())
    assert written["blend"] == [["data/a-00000", "data/a-00001", "data/b"], [23, 7, 10]]
    assert written["blend_per_split"][1:] == [[["data/a.validation", "data/b.validation"], [30, 10]], None]


def test_what_stock_megatron_does_not_enforce_is_said(project: PencilProject) -> None:
    assert "Train 40 samples of 16 tokens and no more; passes then: a 1.2 of 2, b 0.4 of 1" in warnings(plan())[0]


def test_a_missing_held_out_dataset_is_said(project: PencilProject) -> None:
    Path("data/b.validation.manifest.json").unlink()
    made = plan()
    assert valid_pairs(made) == [(30, "data/a.validation")]
    assert warnings(made)[-1] == "no held-out dataset is built for b"


@pytest.mark.parametrize(
    ("blend", "shares", "tolerance"),
    [
        # V1 says "approximately 56% math, 17% code, and 27% science and general-purpose"; by the card's tokens 25.95 %
        # are science and general: the largest gap, 1.05 points.
        ("ldq", {"math": 0.56, "code": 0.17, "science and general": 0.27}, 0.011),
        ("shq", {"math": 0.71, "code": 0.21, "science and general": 0.08}, 1e-9),
        ("alf", {"math": 0.75}, 1e-9),
    ],
)
def test_domain_shares_are_the_papers(blend: str, shares: dict[str, float], tolerance: float) -> None:
    made = plan_blend(BLENDS / f"{blend}.yaml", tokens=8_192_000_000, sequence_length=8192, data_root="nowhere")
    found = dict(made.domain_shares)
    found["science and general"] = found.pop("science", 0) + found.pop("general", 0)
    assert sum(found.values()) == pytest.approx(1)
    assert {name: found[name] for name in shares} == pytest.approx(shares, abs=tolerance)


def test_the_union_holds_shq_by_its_size() -> None:
    made = plan_blend(BLENDS / "lmq.yaml", tokens=80_000_000_000, sequence_length=8192, data_root="nowhere")
    share = {source.source: source.share for source in made.sources}["openthoughts3"]
    assert share == pytest.approx(12 / 348.4)  # 12B declared, 336.4B of D_LDQ


def test_a_union_by_stated_shares_keeps_the_parts_of_ldq_in_proportion(tmp_path: Path) -> None:
    (tmp_path / "half.yaml").write_text(
        "blend: half\nentries:\n"
        f"  - {{source: {BLENDS / 'ldq.yaml'}, share: 0.5}}\n"
        f"  - {{source: {BLENDS / 'shq.yaml'}, share: 0.5, max_epochs: 4}}\n"
    )
    made = plan_blend(tmp_path / "half.yaml", tokens=80_000_000_000, sequence_length=8192, data_root="nowhere")
    found = {source.source: source for source in made.sources}
    assert found["openthoughts3"].share == 0.5
    assert found["openthoughts3"].epochs == pytest.approx(40 / 12, rel=1e-6)  # 40B of 12B
    assert found["nemotron_sft_math"].share == pytest.approx(0.5 * 190.6 / 336.4)


def test_the_parts_of_ldq_sum_to_the_papers_336_billion() -> None:
    made = plan_blend(BLENDS / "ldq.yaml", tokens=80_000_000_000, sequence_length=8192, data_root="nowhere")
    assert sum(source.has_tokens for source in made.sources) == 336_400_000_000


def test_held_out_shards_share_the_weight_of_their_source(project: PencilProject) -> None:
    for path in Path("data").glob("a.validation.*"):
        path.unlink()
    for number, tokens in enumerate((48, 0, 16)):
        project.write_dataset(f"a.validation-0000{number}", tokens=tokens)
    assert valid_pairs(plan()) == [
        (23, "data/a.validation-00000"),
        (7, "data/a.validation-00002"),
        (10, "data/b.validation"),
    ]
