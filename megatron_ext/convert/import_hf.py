"""From a Hugging Face checkpoint to a stage that others begin with: `init_from: import-…`.

    RUN_ROOT/stages/import-ID/plan.json, stage.json     as a trained stage has them (imported_plan.py)
                             model.yaml                 for recipes: `model: …/model.yaml`
                             checkpoints/step_0/        weights, tokenizer, ledger; no optimizer

ID is a hash of the model's shapes, the tokenizer, its chat template and the weights, so the same model imported twice
is one stage. Weights go through a tensor at a time; the folder is written under another name and renamed when it is
whole.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_tools.atomic_files import only_writer, sync_folder, sync_tree
from data_tools.errors import DataError
from data_tools.tokenizer import TokenizerFacts, describe
from megatron_ext.convert.giver import open_giver, refuse_others
from megatron_ext.convert.hf_config import model_of, notes_on
from megatron_ext.convert.imported_plan import plan_of
from megatron_ext.convert.mapping import NEMOTRON_H, Piece, architecture_of, core_shapes, hf_shapes, pieces_of
from megatron_ext.convert.safetensors_files import SafetensorsFolder, TensorFacts
from megatron_ext.convert.tensors import core_tensor
from megatron_ext.convert.tokenizer_files import chat_template, copy_tokenizer
from megatron_ext.convert.torch_dist import write_torch_dist
from megatron_ext.datasets.ledger import LEDGER, LedgerRow, ledger_json
from megatron_ext.plan.lineage import STAGE_FILE
from megatron_ext.plan.sizes import padded_vocab_size
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.schema import ModelRecipe
from megatron_ext.training.checkpoint_facts import layout_of
from megatron_ext.training.file_list import describe_files, write_file_list
from megatron_ext.training.run_record import record_run
from megatron_ext.training.state import TrainState

_OUTPUT = "lm_head.weight"
_BLOCK = 1024


@dataclass(frozen=True)
class Imported:
    """A finished import.

    Attributes:
        folder: Of the stage.
        plan: Of the stage; its id is what `init_from` names.
        notes: Sentences that the user should read.
        difference: Largest one between logits of the two models; None where it was not asked for.
    """

    folder: Path
    plan: StagePlan
    notes: tuple[str, ...]
    difference: float | None = None


def import_checkpoint(
    source: Path, run_root: Path, *, verify: bool = False, say: Callable[[str], None] = print
) -> Imported:
    """Makes a stage of a Hugging Face checkpoint; needs no process group and no GPU.

    Args:
        source: Folder with config.json, safetensors files and tokenizer.json.
        run_root: Folder that holds `stages/`.
        verify: Whether logits of the two models are compared before the stage gets its name.
        say: Takes what the verification has found.

    Raises:
        DataError: The folder is damaged, or holds numbers that are not finite, or its model cannot be expressed here,
            or the logits differ; or another process is importing a model of that name.
    """
    config = _read_config(source)
    folder_name = source.resolve().name
    named = {"name": f"imported-{folder_name}"}  # of a folder "rl" the name alone would read as a kind of stage
    model = model_of(config, source / "config.json").model_copy(update=named)
    facts = _tokenizer_of(source, model)
    reader = _Reader(source, model)
    notes = (*_notes(source, config, facts), *_mixed(reader))
    writing = run_root / "stages" / f".importing_{folder_name}"
    writing.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(writing):
        shutil.rmtree(writing, ignore_errors=True)  # of a killed run
        try:
            plan = _write(writing, reader, source, facts, sequence_length=config.get("max_position_embeddings", 4096))
            difference = _difference(writing, source, plan, say=say) if verify else None
            folder = run_root / "stages" / plan.stage_id
            if folder.exists():
                same = "was there already, with the same weights and chat template; it was left as it is"
                notes = (*notes, f"{folder}: {same}")
            else:
                sync_tree(writing)
                writing.rename(folder)
                sync_folder(folder.parent)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
    return Imported(folder, plan, notes, difference)


def _difference(writing: Path, source: Path, plan: StagePlan, *, say: Callable[[str], None]) -> float:
    from megatron_ext.convert.verify import verify_export

    giver = open_giver(writing / "checkpoints" / "step_0")
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    return verify_export(giver, source, dtype=dtype, say=say, has_floor=False)


class _Reader:
    """The tensors of a Hugging Face checkpoint under Megatron-Core's names, checked when it is made."""

    def __init__(self, source: Path, model: ModelRecipe) -> None:
        self.model = model
        self._files = SafetensorsFolder(source)
        self._prefix = _prefix_of(self._files, model)
        pieces = [piece._replace(hf=self._stored(piece.hf)) for piece in pieces_of(model, model.vocab_size)]
        self._refuse_others(pieces)
        self._pieces: dict[str, list[Piece]] = {}
        for piece in pieces:
            if not (model.share_embeddings_and_output_weights and piece.hf == _OUTPUT):
                self._pieces.setdefault(piece.core, []).append(piece)
        self._shapes = core_shapes(pieces_of(model, padded_vocab_size(model.vocab_size)))
        self.tensors = {
            name: TensorFacts(shape, self._files.tensors[self._pieces[name][0].hf].dtype)
            for name, shape in self._shapes.items()
        }

    def read(self, name: str, *, known: int) -> Tensor:
        """A whole tensor; rows that only the padded vocabulary has are the mean of the `known` first ones.

        The mean, as for the rows of new tokens (`models/new_rows.py`): neither likelier nor rarer than others.
        """
        whole, filled = core_tensor(
            self._pieces[name], self._read_finite, dtype=self.tensors[name].dtype, rows=self._shapes[name][0]
        )
        if filled < len(whole):
            whole[filled:] = (_sum_of_rows(whole[:known]) / known).to(whole.dtype)
        return whole

    def _read_finite(self, name: str, begin: int, end: int) -> Tensor:
        rows = self._files.read(name, begin, end)
        if not all(block.isfinite().all() for block in rows.split(_BLOCK)):
            raise DataError(f"{self._files.folder}: {name} holds NaN or infinite numbers: take another checkpoint.")
        return rows

    def _stored(self, name: str) -> str:
        return name.replace("backbone.", self._prefix, 1) if name.startswith("backbone.") else name

    def _refuse_others(self, pieces: list[Piece]) -> None:
        """Refuses missing and additional tensors, and an output layer that is or is not the embedding."""
        expected, found = hf_shapes(pieces), {name: facts.shape for name, facts in self._files.tensors.items()}
        embedding = self._stored(pieces[0].hf)
        is_tied, config = self.model.share_embeddings_and_output_weights, self._files.folder / "config.json"
        if not is_tied and _OUTPUT not in found and embedding in found:
            raise DataError(
                f"{config}: tie_word_embeddings is false, and there is no {_OUTPUT}: the output layer is missing. If "
                "it is the embedding, write true; else take a whole checkpoint."
            )
        if is_tied and _OUTPUT not in found:
            del expected[_OUTPUT]
        refuse_others(self._files.folder, expected, found, what="the model of config.json")
        if is_tied and _OUTPUT in found and not self._are_equal(embedding, _OUTPUT):
            raise DataError(
                f"{config}: tie_word_embeddings is true, and {_OUTPUT} is not {embedding}: which of the two the output "
                "layer is, is not clear. Write false where it was trained apart."
            )

    def _are_equal(self, one: str, other: str) -> bool:
        rows = self._files.tensors[one].shape[0]
        blocks = [(begin, min(begin + _BLOCK, rows)) for begin in range(0, rows, _BLOCK)]
        return all(torch.equal(self._files.read(one, *block), self._files.read(other, *block)) for block in blocks)


def _prefix_of(files: SafetensorsFolder, model: ModelRecipe) -> str:
    """How names begin: transformers' own `model.`, in memory, is written by some who convert."""
    short, long = (sum(name.startswith(prefix) for name in files.tensors) for prefix in ("model.", "backbone."))
    return "model." if architecture_of(model) == NEMOTRON_H and short > long else "backbone."


def _sum_of_rows(rows: Tensor) -> Tensor:
    """In float64, a block at a time."""
    return torch.stack([rows[at : at + _BLOCK].double().sum(0) for at in range(0, len(rows), _BLOCK)]).sum(0)


def _read_config(source: Path) -> dict[str, Any]:
    file = source / "config.json"
    try:
        config: dict[str, Any] = dict(json.loads(file.read_bytes()))
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; name the folder of a Hugging Face checkpoint.") from None
    except (ValueError, TypeError):
        raise DataError(f"{file}: damaged: it holds no JSON object. Download it again.") from None
    return config


def _tokenizer_of(source: Path, model: ModelRecipe) -> TokenizerFacts:
    facts = describe(source)
    if facts.vocab_size > model.vocab_size:
        raise DataError(
            f"{source}: vocab_size {model.vocab_size:,} in config.json, and the largest id of tokenizer.json is "
            f"{facts.vocab_size - 1:,}: tokenizer and weights are not of one model."
        )
    return facts


def _notes(source: Path, config: dict[str, Any], facts: TokenizerFacts) -> tuple[str, ...]:
    notes = notes_on(config)
    ends = config.get("eos_token_id")
    if ends is not None and facts.eod_id not in (ends if isinstance(ends, list) else [ends]):
        notes.append(
            f"config.json: eos_token_id {ends}, and eos_token of tokenizer_config.json has id {facts.eod_id}; that is "
            "what ends documents here"
        )
    if chat_template(source) is None:
        notes.append("the tokenizer has no chat template; an sft stage needs one (chat_template.jinja beside it)")
    return tuple(notes)


def _mixed(reader: _Reader) -> tuple[str, ...]:
    dtypes = [facts.dtype for facts in reader.tensors.values()]
    wide = dtypes.count(torch.float32)
    if not 0 < wide < len(dtypes):
        return ()
    return (f"{wide} of {len(dtypes)} tensors are float32, the others bfloat16; each is kept as it is",)


def _write(writing: Path, reader: _Reader, source: Path, facts: TokenizerFacts, *, sequence_length: int) -> StagePlan:
    """Writes the stage's folder; returns its plan, which the weights' hash is part of."""
    step = writing / "checkpoints" / "step_0"
    (step / "tokenizer").mkdir(parents=True)
    digest = write_torch_dist(step, reader.tensors, lambda name: reader.read(name, known=facts.vocab_size))
    copy_tokenizer(source, step / "tokenizer")
    model = reader.model
    plan = plan_of(
        model,
        padded_vocab_size(model.vocab_size),
        source,
        facts,
        sequence_length=sequence_length,
        precision="bf16" if reader.tensors["embedding.word_embeddings.weight"].dtype == torch.bfloat16 else "fp32",
        origin=str(source),
        weights_sha256=digest,
        chat_template=chat_template(source),
    )
    state = TrainState().to_json()
    ledger = [LedgerRow(phase=0, source=f"imported from {source.resolve().name}", domain="unknown", data_id=digest)]
    optimizer = {"format": "fully_reshardable", "updates": 0}
    facts_of_state = {"state": state, "cursor": {}, "layout": layout_of(plan), "backend": "local"}
    (step / "state.json").write_text(json.dumps(facts_of_state | {"optimizer": optimizer}, indent=1))
    (step / LEDGER).write_text(ledger_json(ledger))
    for folder in (step, writing):
        (folder / "plan.json").write_text(plan.model_dump_json(indent=1))
    write_file_list(step, describe_files(step, [path for path in step.rglob("*") if path.is_file()]))
    (writing / "model.yaml").write_text(_model_yaml(model, plan))
    stage = {
        "stage_id": plan.stage_id,
        "stage": plan.stage,
        "meaning": plan.meaning,
        "parent": None,
        "state": state,
        "checkpoint": "checkpoints/step_0",
        "tokenizer_fingerprint": facts.fingerprint,
        "chat_template": chat_template(source),
        "loss": None,
        "validation": None,
        "ledger": [row.to_json() for row in ledger],
    }
    record_run(writing, plan)
    (writing / STAGE_FILE).write_text(json.dumps(stage, indent=1) + "\n")
    return plan


def _model_yaml(model: ModelRecipe, plan: StagePlan) -> str:
    lines = [f"# {plan.model_size.total_parameters:,} parameters, imported as {plan.stage_id}."]
    for key, value in model.model_dump().items():
        assert not isinstance(value, float) or math.isfinite(value), f"{key}: {value}"
        lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"
