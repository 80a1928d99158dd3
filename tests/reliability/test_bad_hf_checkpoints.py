"""Whatever is wrong with a checkpoint that goes out or in is named, and nothing half written stays behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_tools.errors import DataError, UsageError, UserError
from megatron_ext.__main__ import main
from megatron_ext.convert.export import export_checkpoint
from megatron_ext.convert.giver import open_giver
from megatron_ext.convert.import_hf import import_checkpoint
from megatron_ext.convert.torch_dist import TorchDistWeights, write_torch_dist
from megatron_ext.convert.verify import verify_export
from megatron_ext.recipe.schema import ModelRecipe
from tests.support.hf_models import make_hf_plan, save_as_stock, strong_model
from tests.support.one_process import one_process
from tests.support.toy_project import ToyProject

WEIGHTS, OUTPUT, EMBEDDING = "model.safetensors", "lm_head.weight", "backbone.embeddings.weight"
PLAN = make_hf_plan(hybrid_layer_pattern="M-*")


@pytest.fixture(scope="module")
def tokenizer(toy_project: ToyProject) -> Path:
    return toy_project.root / "data" / "tokenizer"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with one_process() as groups:
        return save_as_stock(strong_model(PLAN, groups), groups, tmp_path_factory.mktemp("stock") / "iter_0000001")


@pytest.fixture(scope="module")
def exported(stock: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(stock, tmp_path_factory.mktemp("hf") / "whole", model=PLAN.model, tokenizer=tokenizer).path


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(exported, tmp_path / "hf")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(folder: Path, run_root: Path, *, verify: bool = False) -> str:
    """What an import is refused with; it must leave nothing."""
    with pytest.raises(DataError) as caught:
        import_checkpoint(folder, run_root, verify=verify, say=lambda _: None)
    assert not run_root.exists() or not list((run_root / "stages").iterdir())
    return str(caught.value)


def test_truncated_safetensors(folder: Path, tmp_path: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])
    text = refusal(folder, tmp_path / "runs")
    assert text.startswith(f"{folder / WEIGHTS}: cannot be read: ")
    assert "it is truncated, or no safetensors file" in text


def test_a_missing_tensor(folder: Path, tmp_path: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("backbone.layers.1.mixer.up_proj.weight"))
    text = refusal(folder, tmp_path / "runs")
    assert "backbone.layers.1.mixer.up_proj.weight: missing; the model of config.json has 64 x 32" in text


def test_an_additional_tensor(folder: Path, tmp_path: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"backbone.layers.1.mixer.bias": torch.zeros(3)}))
    text = refusal(folder, tmp_path / "runs")
    assert "backbone.layers.1.mixer.bias: 3; the model of config.json has no such tensor" in text


def test_an_additional_tensor_under_the_other_prefix_is_named_alone(folder: Path, tmp_path: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.layers.0.bogus": torch.zeros(3)}))
    text = refusal(folder, tmp_path / "runs")
    assert text.splitlines()[1:] == ["  model.layers.0.bogus: 3; the model of config.json has no such tensor"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number(folder: Path, tmp_path: Path, value: float) -> None:
    name = "backbone.layers.0.mixer.dt_bias"
    change_weights(folder, lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    assert refusal(folder, tmp_path / "runs") == (
        f"{folder}: {name} holds NaN or infinite numbers: take another checkpoint."
    )


def test_a_tensor_of_another_dtype(folder: Path, tmp_path: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({OUTPUT: tensors[OUTPUT].half()}))
    assert f"{OUTPUT} is stored as F16; F32 and BF16 can be read" in refusal(folder, tmp_path / "runs")


def test_a_vocabulary_of_another_size_than_the_embedding(folder: Path, tmp_path: Path) -> None:
    change_config(folder, vocab_size=2048)
    text = refusal(folder, tmp_path / "runs")
    assert f"{EMBEDDING}: 1024 x 32; the model of config.json has 2048 x 32" in text


def test_a_tokenizer_with_larger_ids_than_the_vocabulary(folder: Path, tmp_path: Path) -> None:
    change_config(folder, vocab_size=200)
    text = refusal(folder, tmp_path / "runs")
    assert "vocab_size 200 in config.json, and the largest id of tokenizer.json is 288" in text


def test_an_unknown_architecture(folder: Path, tmp_path: Path) -> None:
    change_config(folder, model_type="mamba2", architectures=["Mamba2ForCausalLM"])
    assert "architectures ['Mamba2ForCausalLM'], model_type 'mamba2'" in refusal(folder, tmp_path / "runs")


def test_tied_weights_that_are_not_equal(folder: Path, tmp_path: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    text = refusal(folder, tmp_path / "runs")
    assert f"tie_word_embeddings is true, and {OUTPUT} is not {EMBEDDING}" in text


def test_untied_weights_without_an_output_layer(folder: Path, tmp_path: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop(OUTPUT))
    assert f"tie_word_embeddings is false, and there is no {OUTPUT}" in refusal(folder, tmp_path / "runs")


def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert f"{folder / 'tokenizer.json'}" in refusal(folder, tmp_path / "runs")


def test_an_index_that_names_an_absent_file(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {OUTPUT: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors: missing, and model.safetensors.index.json names it" in refusal(
        folder, tmp_path / "runs"
    )


def test_an_import_that_transformers_computes_otherwise_is_not_put_in_place(folder: Path, tmp_path: Path) -> None:
    # transformers does not tie Nemotron-H's weights itself: it draws an output layer that is not in the file.
    change_weights(folder, lambda tensors: tensors.pop(OUTPUT))
    change_config(folder, tie_word_embeddings=True)
    assert "missing_keys" in refusal(folder, tmp_path / "runs", verify=True)


def test_a_tokenizer_without_chat_template_is_named_and_taken(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    done = import_checkpoint(folder, tmp_path / "runs")
    assert done.notes == ("the tokenizer has no chat template; an sft stage needs one (chat_template.jinja beside it)",)


def test_a_chat_template_that_came_later_makes_another_stage(folder: Path, tmp_path: Path) -> None:
    without = import_checkpoint(folder, tmp_path / "runs")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    taught = import_checkpoint(folder, tmp_path / "runs")
    assert taught.notes == ()
    assert taught.folder != without.folder
    step = taught.folder / "checkpoints" / "step_0"
    assert (step / "tokenizer" / "chat_template.jinja").read_text() == (folder / "chat_template.jinja").read_text()


def test_weights_of_two_precisions_are_said_and_go_out_in_that_of_the_stage(folder: Path, tmp_path: Path) -> None:
    kept = "backbone.layers.0.mixer.A_log"
    change_weights(folder, lambda all: all.update({key: all[key].bfloat16() for key in all if key != kept}))
    done = import_checkpoint(folder, tmp_path / "runs")
    count = len(load_file(folder / WEIGHTS))
    core = len(TorchDistWeights(done.folder / "checkpoints" / "step_0").tensors)
    assert f"1 of {core} tensors are float32, the others bfloat16; each is kept as it is" in done.notes
    step = done.folder / "checkpoints" / "step_0"
    out = export_checkpoint(step, tmp_path / "again")
    rounded = f"1 of {core} tensors are stored in fp32 and were rounded to bf16; --dtype fp32 keeps them"
    assert (out.dtype, rounded in out.notes) == ("bf16", True)
    assert [tensor.dtype for tensor in load_file(tmp_path / "again" / WEIGHTS).values()] == [torch.bfloat16] * count
    assert rounded not in export_checkpoint(step, tmp_path / "wide", dtype="fp32").notes


def export_refusal(checkpoint: Path, tokenizer: Path, to: Path, *, model: ModelRecipe = PLAN.model) -> str:
    """What an export is refused with; it must leave nothing."""
    with pytest.raises(UserError) as caught:
        export_checkpoint(checkpoint, to, model=model, tokenizer=tokenizer)
    assert not to.parent.exists() or not list(to.parent.iterdir())
    return str(caught.value)


def test_the_weights_of_another_model_are_not_exported(stock: Path, tokenizer: Path, tmp_path: Path) -> None:
    wider = PLAN.model.model_copy(update={"ffn_hidden_size": 128, "name": "wider"})
    text = export_refusal(stock, tokenizer, tmp_path / "out" / "hf", model=wider)
    assert "decoder.layers.1.mlp.linear_fc1.weight: 64 x 32; the model wider has 128 x 32" in text


def test_a_damaged_file_of_megatron_lm_is_not_exported(stock: Path, tokenizer: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(stock, tmp_path / "damaged")
    file = max(damaged.glob("*.distcp"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    text = export_refusal(damaged, tokenizer, tmp_path / "out" / "hf")
    assert "a .distcp file is missing or damaged" in text


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\x80\x04}.", b"\x80\x04})R."], ids=repr)
def test_damaged_metadata_of_megatron_lm_is_named(stock: Path, tokenizer: Path, tmp_path: Path, content: bytes) -> None:
    damaged = shutil.copytree(stock, tmp_path / "damaged")
    (damaged / ".metadata").write_bytes(content)
    text = export_refusal(damaged, tokenizer, tmp_path / "out" / "hf")
    assert text.startswith(f"{damaged / '.metadata'}: damaged (")


def test_nothing_that_a_checkpoint_asks_for_is_run(stock: Path, tokenizer: Path, tmp_path: Path) -> None:
    hostile = shutil.copytree(stock, tmp_path / "hostile")
    (hostile / ".metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "run")))
    text = export_refusal(hostile, tokenizer, tmp_path / "out" / "hf")
    assert text.startswith(f"{hostile / '.metadata'}: it asks for _io.open, which no metadata of weights is made of")
    assert not (tmp_path / "run").exists()


def test_a_path_through_a_permitted_module_is_not_followed(stock: Path, tokenizer: Path, tmp_path: Path) -> None:
    hostile = shutil.copytree(stock, tmp_path / "hostile")
    module, name, file = b"torch.serialization", b"os.mkdir", str(tmp_path / "run").encode()
    texts = [b"\x8c" + bytes([len(text)]) + text for text in (module, name, file)]
    (hostile / ".metadata").write_bytes(b"\x80\x04" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R.")
    text = export_refusal(hostile, tokenizer, tmp_path / "out" / "hf")
    assert "it asks for torch.serialization.os.mkdir" in text
    assert not (tmp_path / "run").exists()


def test_the_latest_iteration_that_is_no_number_is_named(stock: Path, tokenizer: Path, tmp_path: Path) -> None:
    several = tmp_path / "several"
    shutil.copytree(stock, several / stock.name)
    latest = several / "latest_checkpointed_iteration.txt"
    latest.write_text("twelve\n")
    text = export_refusal(several, tokenizer, tmp_path / "out" / "hf")
    assert text == f"{latest}: damaged: it says 'twelve', and no number; name one of the iter_… folders beside it."


def test_a_norm_under_two_names_is_not_exported(stock: Path, tokenizer: Path, tmp_path: Path) -> None:
    weights, extra = TorchDistWeights(stock), "decoder.layers.0.norm.weight"
    tensors = weights.tensors | {extra: weights.tensors["decoder.final_norm.weight"]}
    (tmp_path / "both").mkdir()
    write_torch_dist(
        tmp_path / "both", tensors, lambda name: weights.read("decoder.final_norm.weight" if name == extra else name)
    )
    text = export_refusal(tmp_path / "both", tokenizer, tmp_path / "out" / "hf")
    assert "decoder.layers.0.mixer.in_proj.layer_norm_weight are the same weight, and both are there" in text


def test_every_file_is_on_the_disk_before_its_folder_has_its_name(
    stock: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(os.readlink(f"/proc/self/fd/{number}"))))
    export_checkpoint(stock, tmp_path / "hf", model=PLAN.model, tokenizer=tokenizer)
    stage = import_checkpoint(tmp_path / "hf", tmp_path / "runs").folder
    for folder, writing in ((tmp_path / "hf", ".writing_hf"), (stage, ".importing_hf")):
        files = [folder.with_name(writing) / path.relative_to(folder) for path in folder.rglob("*")]
        assert set(files) <= set(synced)


def test_a_hybrid_of_megatron_lm_with_another_epsilon_is_said_to_differ(
    stock: Path, tokenizer: Path, tmp_path: Path
) -> None:
    model = PLAN.model.model_copy(update={"layernorm_epsilon": 1e-6})
    (note,) = export_checkpoint(stock, tmp_path / "hf", model=model, tokenizer=tokenizer).notes[-1:]
    assert note.startswith("layernorm_epsilon 1e-06: the gated norm of Megatron-LM's Mamba layers has 1e-5")
    assert "layernorm" not in str(export_checkpoint(stock, tmp_path / "b", model=PLAN.model, tokenizer=tokenizer).notes)


def test_an_export_into_a_folder_that_is_there_changes_nothing(exported: Path, stock: Path, tokenizer: Path) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    with pytest.raises(UsageError, match="is there already; nothing is overwritten"):
        export_checkpoint(stock, exported, model=PLAN.model, tokenizer=tokenizer)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


@pytest.mark.parametrize("change", [{"layer_norm_epsilon": 1e-4}, {"time_step_min": 0.5}], ids=str)
def test_verification_refuses_a_config_with_other_maths(
    folder: Path, stock: Path, tokenizer: Path, change: dict[str, float]
) -> None:
    giver = open_giver(stock, model=PLAN.model, tokenizer=tokenizer)
    said: list[str] = []
    assert verify_export(giver, folder, dtype=torch.float32, say=said.append) < 1e-5
    assert said[-1].endswith("of the largest logit, allowed 1.0e-05")
    change_config(folder, **change)
    with pytest.raises(DataError, match="transformers' logits differ from this project's by"):
        verify_export(giver, folder, dtype=torch.float32, say=said.append)


def test_the_command_says_what_is_wrong_with_exit_code_3(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_config(folder, mlp_bias=True)
    assert main(["import", str(folder), "--to", str(tmp_path / "runs")]) == 3
    assert "mlp_bias: True; only False can be expressed" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "out")]) == 3
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "out"), "--dtype", "bf16"]) == 3
