"""A composed tree against the schema: every problem with its place, nothing thrown away.

Pydantic decides; what it says is turned into the words of a recipe's writer: the value as written,
the rule, and what to write instead.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from data_tools.strict_yaml import KeyPath, nearest
from megatron_ext.recipe.compose import Tree
from megatron_ext.recipe.keys import field_at, fields_of, key_name, leaf_keys, section_at, type_name
from megatron_ext.recipe.problems import Origin, Problems
from megatron_ext.recipe.rules import broken_rules
from megatron_ext.recipe.schema import Recipe, Section

ELSEWHERE = {
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "adam_eps": "optimizer.eps",
    "bf16": "precision",
    "eval_interval": "training.validation_interval_tokens",
    "hybrid_override_pattern": "model.hybrid_layer_pattern",
    "learning_rate": "optimizer.lr",
    "lr_decay_style": "schedule.style",
    "lr_warmup_samples": "schedule.warmup_tokens",
    "max_lr": "optimizer.lr",
    "max_position_embeddings": "training.sequence_length",
    "num_layers": "model.hybrid_layer_pattern",
    "group_size": "rl.samples_per_prompt",
    "num_generations": "rl.samples_per_prompt",
    "pp": "parallel.pipeline_model_parallel_size",
    "ppo_mini_batch_size": "rl.mini_batch_prompts",
    "prompts_per_step": "training.global_batch_size",
    "save_interval": "checkpoint.interval_tokens",
    "seq_length": "training.sequence_length",
    "tp": "parallel.tensor_model_parallel_size",
    "train_iters": "budget.tokens",
    "train_batch_size": "training.global_batch_size",
    "train_samples": "budget.tokens",
}
"""Words of Megatron's command line, of Hugging Face configs and of earlier versions, and the key that means it here."""

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def checked[Kind: Section](kind: type[Kind], tree: Tree, problems: Problems) -> Kind | None:
    """The tree as a frozen section.

    Args:
        kind: The schema of the tree's top level.
        tree: Composed values with their places.
        problems: Takes what is wrong, the rules that join keys included.

    Returns:
        The section, or None when a value is wrong.
    """
    data = _with_tuples(tree.data)
    result: Kind | None = None
    try:
        result = kind.model_validate(data)
    except ValidationError as error:
        for detail in error.errors():
            path = detail["loc"]
            if detail["type"] == "too_short" and _value(tree, path):
                continue  # pydantic counts valid elements only; those that are not are said themselves
            problems.add(tree.origin(path), path, _message(kind, tree, detail))
    for prefix, section in _valid_sections(kind, data):
        for inside, message in broken_rules(section):
            path = prefix + inside
            problems.add(_blamed(tree, path, prefix), path, message)
    return result


def _blamed(tree: Tree, path: KeyPath, section: KeyPath) -> Origin:
    """The place of a key that a rule joins with others of its section: what stands over the recipe, if it does."""
    written = [origin for key, origin in tree.origins.items() if key[: len(section)] == section and key != section]
    over = [origin for origin in written if origin.is_over]
    origin = tree.origin(path)
    return over[-1] if over and not origin.is_over else origin


def _valid_sections(kind: type[Section], data: dict[str, Any]) -> list[tuple[KeyPath, Section]]:
    """The sections whose own values are valid, also where their neighbours' are not."""
    candidates: list[tuple[KeyPath, type[Section], Any]] = [((), kind, data)]
    for name, field in fields_of(kind).items():
        if (section := section_at(kind, (name,))) is not None:
            candidates.append(((name,), section, data.get(name, field.get_default())))
    valid: list[tuple[KeyPath, Section]] = []
    for path, section, value in candidates:
        try:
            valid.append((path, section.model_validate(value)))
        except ValidationError:
            continue
    return valid


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: the schema is strict and its sequences are frozen."""
    if isinstance(value, dict):
        return {key: _with_tuples(inner) for key, inner in value.items()}
    return tuple(_with_tuples(inner) for inner in value) if isinstance(value, list) else value


def _message(kind: type[Section], tree: Tree, detail: ErrorDetails) -> str:
    path, error = detail["loc"], detail["type"]
    context = detail.get("ctx", {})
    if error == "extra_forbidden":
        return _unknown_key(kind, path)
    field = field_at(kind, path[:-1] if isinstance(path[-1], int) else path)
    if error == "missing":
        described = field.description if field is not None and field.description else _required_below(kind, path)
        return f"required and not set; {described}"
    value = _written(tree, path)
    if error == "value_error":
        return str(context["error"])
    if error in _BOUNDS:
        key, words = _BOUNDS[error]
        return f"{value} is out of range; it must be {words} {context[key]:g}"
    if error == "literal_error" and field is not None:
        return f"{value} is not allowed; use {type_name(field)}"
    if error == "string_pattern_mismatch" and field is not None:
        return f"{value} is not allowed; {field.description}"
    if error == "string_type":
        return f"{value} is no text; put it in quotes{f'; {field.description}' if field is not None else ''}"
    if error in ("model_type", "dict_type", "model_attributes_type"):
        return f"{value} is no section; write its keys below it: {_keys_of(kind, path)}"
    if error == "tuple_type":
        return f"{value} is no list; write one element a line, each after '- '"
    if error == "too_short":
        return "an empty list; it needs at least one element"
    rule = type_name(field) if field is not None else detail["msg"]
    return f"{value} is not allowed; write {rule}"


def _written(tree: Tree, path: KeyPath) -> str:
    value = _value(tree, path)
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)  # true, false, null


def _value(tree: Tree, path: KeyPath) -> Any:
    value: Any = tree.data
    for step in path:
        value = value[step]
    return value


def _keys_of(kind: type[Section], path: KeyPath) -> str:
    section = section_at(kind, path)
    return ", ".join(sorted(fields_of(section))) if section is not None else ""


def _required_below(kind: type[Section], path: KeyPath) -> str:
    """The keys that a section cannot do without."""
    section = section_at(kind, path)
    fields = fields_of(section) if section is not None else {}
    required = [name for name, field in sorted(fields.items()) if field.is_required()]
    return f"it needs {', '.join(required)}" if required else _keys_of(kind, path)


def _unknown_key(kind: type[Section], path: KeyPath) -> str:
    allowed = sorted(fields_of(section)) if (section := section_at(kind, path[:-1])) is not None else []
    return f"unknown key; {_meant(kind, path, allowed)}allowed here: {', '.join(allowed)}"


def _meant(kind: type[Section], path: KeyPath, allowed: list[str]) -> str:
    """What the writer of an unknown key probably meant."""
    name = str(path[-1])
    if (near := nearest(name, allowed)) is not None:
        return f"did you mean {near}? "
    everywhere = {str(leaf[-1]): key_name(leaf) for leaf in leaf_keys(kind)}
    if kind is Recipe and name in ELSEWHERE:
        return f"here it is {ELSEWHERE[name]}; "
    if (elsewhere := nearest(name, everywhere)) is not None:
        return f"did you mean {everywhere[elsewhere]}? "
    return ""
