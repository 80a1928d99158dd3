"""Memory of `import` and `export` above their imports, beside the size of the model that goes through.

    python -m tests.benchmarks.convert_memory FOLDER [--layers 300]

Writes a Hugging Face model of random weights below FOLDER (0.6 GB with 300 layers, 2 GB in all), imports it, exports it
again, and compares the bytes. Each of both runs in a process of its own, in which a model of some KB has gone
both ways before, so that what Python loads at first use is not counted. The peak of resident memory is the kernel's.
Prints JSON: bytes of the model, peak above imports in bytes, and the first divided by the second.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from data_tools.tokenizer_training import train_tokenizer
from megatron_ext.convert.export import export_checkpoint
from megatron_ext.convert.hf_config import TokenIds, hf_config
from megatron_ext.convert.import_hf import import_checkpoint
from megatron_ext.convert.mapping import hf_shapes, pieces_of
from megatron_ext.convert.safetensors_files import TensorFacts, write_safetensors
from megatron_ext.recipe.schema import ModelRecipe


def model_of(layers: int, width: int) -> ModelRecipe:
    """MLPs, and now and then Mamba-2 or attention; a layer of width 256 has 2 MB in float32."""
    return ModelRecipe(
        name="large",
        hybrid_layer_pattern="".join("M*-------"[number % 9] for number in range(layers)),
        hidden_size=width,
        vocab_size=1024,
        ffn_hidden_size=4 * width,
        num_attention_heads=8,
        num_query_groups=2,
        kv_channels=width // 4,
        mamba_num_heads=16,
        mamba_head_dim=width // 8,
        mamba_state_dim=64,
        mamba_num_groups=2,
    )


def write_model(folder: Path, layers: int, *, width: int = 256) -> None:
    """A Hugging Face checkpoint of random weights, with a tokenizer of a few words."""
    folder.mkdir(parents=True)
    (folder.parent / "words.jsonl").write_text("".join(json.dumps({"text": f"word {n}"}) + "\n" for n in range(200)))
    train_tokenizer([folder.parent / "words.jsonl"], key="text", vocab_size=300, out=folder)
    model, draw = model_of(layers, width), torch.Generator().manual_seed(0)
    shapes = hf_shapes(pieces_of(model, 1024))
    facts = {name: TensorFacts(shape, torch.float32) for name, shape in shapes.items()}
    write_safetensors(folder, facts, lambda name: torch.randn(shapes[name], generator=draw), shard_bytes=300 * 10**6)
    ids = TokenIds(bos=None, eos=0, pad=1)
    config = hf_config(model, padded_vocab_size=1024, ids=ids, sequence_length=4096, dtype="fp32")
    (folder / "config.json").write_text(json.dumps(config))


def resident_bytes(key: str) -> int:
    """Of this process: `VmRSS` now, `VmHWM` the peak since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def forget_peak() -> None:
    """Imports have peaks of their own, which would hide that of the conversion."""
    Path("/proc/self/clear_refs").write_text("5")


def in_a_process_of_its_own(verb: str, source: Path, target: Path) -> dict[str, float]:
    """Converts; returns peak above imports and seconds."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, str(source), "--verb", verb, "--to", str(target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def convert(verb: str, source: Path, target: Path) -> dict[str, float]:
    """Does one conversion in this process."""
    small = target.with_name(f"small_{verb}")
    write_model(small / "hf", 3, width=32)
    stage = import_checkpoint(small / "hf", small / "runs").folder  # loads what is loaded at first use
    export_checkpoint(stage / "checkpoints" / "step_0", small / "again")
    forget_peak()
    before, began = resident_bytes("VmRSS"), time.monotonic()
    if verb == "import":
        import_checkpoint(source, target)
    else:
        export_checkpoint(source, target, shard_bytes=300 * 10**6)
    return {"above_imports": resident_bytes("VmHWM") - before, "seconds": time.monotonic() - began}


def measure(folder: Path, layers: int) -> dict[str, object]:
    """Writes, imports, exports, compares."""
    write_model(folder / "hf", layers)
    size = sum(path.stat().st_size for path in (folder / "hf").glob("*.safetensors"))
    found = {"import": in_a_process_of_its_own("import", folder / "hf", folder / "runs")}
    (stage,) = (folder / "runs" / "stages").iterdir()
    found["export"] = in_a_process_of_its_own("export", stage / "checkpoints" / "step_0", folder / "again")
    names = [path.name for path in (folder / "hf").glob("*.safetensors")]
    same = all(filecmp.cmp(folder / "hf" / name, folder / "again" / name, shallow=False) for name in names)
    ratios = {verb: size / max(1.0, peak["above_imports"]) for verb, peak in found.items()}
    return {"model_bytes": size, **found, "model_over_memory": ratios, "same_bytes": same}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--verb", choices=("import", "export"), help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.verb:
        print(json.dumps(convert(args.verb, args.folder, args.to)))
    else:
        print(json.dumps(measure(args.folder, args.layers)))
