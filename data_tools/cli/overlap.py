"""The verb `overlap`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data_tools.atomic_files import beside
from data_tools.cli.output import print_table, warn
from data_tools.errors import DataError, UsageError

if TYPE_CHECKING:
    from data_tools.overlap import Corpus, Overlap, Side


def add(verbs: Any) -> None:
    """Registers the verb."""
    about = "Find documents and n-grams that two corpora share, or that evaluation sets share with them."
    parser = verbs.add_parser("overlap", help=about, description=about)
    parser.example = (
        "python -m data_tools overlap data/demo/raw/ldq.jsonl data/demo/raw/shq.jsonl \\\n"
        "      --against data/demo/raw/shq.validation.jsonl --out data/demo/overlap.jsonl"
    )
    parser.add_argument("a", metavar="A", help="a file, a folder, a glob; or the YAML of a source or blend")
    parser.add_argument("b", metavar="B", nargs="?", help="the same; may be left out with --against")
    parser.add_argument("--against", nargs="+", default=[], metavar="EVAL", help="evaluation sets, each compared alone")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a JSON line for each pair, and each document with a hit"
    )
    parser.add_argument("--ngram", type=int, default=13, metavar="N", help="words of an n-gram (default 13)")
    parser.add_argument("--adapter", default="text", metavar="NAME", help="how records of files are read (text)")
    parser.add_argument("--key", metavar="KEY", help="key of the text, for the adapter text")
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR", help="folder of the datasets that YAML names"
    )
    parser.set_defaults(verb=_overlap)


def _overlap(options: argparse.Namespace) -> None:
    from data_tools.overlap import find_overlap, write_pair, write_report
    from data_tools.progress import shown

    if options.b is None and not options.against:
        raise UsageError("overlap: nothing to compare with; give B, or --against EVAL")
    if options.ngram < 1:
        raise UsageError(f"--ngram: {options.ngram} is too few; give at least 1")
    corpora = [_corpus(name, options) for name in (options.a, options.b) if name is not None]
    tests = [_corpus(name, options) for name in options.against]
    if options.out:
        _refuse_an_input(options.out, [*corpora, *tests])
    pairs = [tuple(corpora)] if len(corpora) == 2 else []
    pairs += [(corpus, test) for corpus in corpora for test in tests]
    rows: list[list[str]] = []
    with ExitStack() as stack:
        report = stack.enter_context(_report(options.out)) if options.out else None
        for first, second in pairs:
            label = f"overlap {first.name} {second.name}"
            with shown(label, 2 * (first.size + second.size)) as progress:
                overlap = find_overlap(first, second, n=options.ngram, progress=progress)
                if report is not None:
                    write_pair(overlap, report.write)
                    write_report(overlap, report.write, progress)
            rows += _rows(overlap)
            times = "once" if overlap.passes == 1 else f"{overlap.passes} times"
            print(f"{label}: {overlap.false_hits:.1e} false hits expected by chance; text read {times}")
    if options.out:
        print(f"wrote {options.out}")
    print_table(
        f"documents that share {options.ngram}-grams",
        ["of", "against", "documents", "duplicates", "short", "within", "with a hit", "hit by half"],
        rows,
    )


def _refuse_an_input(out: Path, corpora: Sequence[Corpus]) -> None:
    """The report takes the place of whatever stands at `out`, which must not be what is compared."""
    from data_tools.inputs import find_inputs

    read = [file.path for corpus in corpora for names, _ in corpus.parts for file in find_inputs(names).files]
    if out.resolve() in {path.resolve() for path in (*read, *(Path(corpus.name) for corpus in corpora))}:
        raise UsageError(f"--out: {out}: is one of the files that are compared; name another")


@contextmanager
def _report(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all is written: half a report could be taken for a clean one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path, ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _corpus(name: str, options: argparse.Namespace) -> Corpus:
    from data_tools.adapters import adapter_named
    from data_tools.overlap import Corpus

    if Path(name).suffix in (".yaml", ".yml"):
        return _corpus_of_recipe(name, options.data_root)
    return Corpus(name, (([name], adapter_named(options.adapter, key=options.key)),))


def _corpus_of_recipe(name: str, data_root: Path) -> Corpus:
    """The text from which the datasets of a source or blend were made, as their manifests name it."""
    from data_tools.adapters import adapter_named
    from data_tools.blend_files import SourceFile, read_file
    from data_tools.dataset import find_dataset
    from data_tools.overlap import Corpus

    file = read_file(name)
    sources = [file] if isinstance(file, SourceFile) else list(file.sources())
    parts, rejected = [], 0
    for source in {source.recipe.source: source for source in sources}.values():
        dataset = find_dataset(data_root / source.recipe.prefix)
        if dataset is None:
            raise DataError(f"{source.path}: {source.recipe.source!r} is not built; name its text files instead")
        if left_out := sum(shard.manifest.left_out for shard in dataset.shards):
            warn(
                f"{name}: the text of {source.recipe.source} is compared whole, with {left_out:,} documents that "
                f"--where '{dataset.shards[0].manifest.where}' leaves out of its dataset"
            )
        if bad := sum(shard.manifest.rejected for shard in dataset.shards):
            rejected += bad
            warn(f"{name}: {bad:,} records of {source.recipe.source} that its dataset rejects are not compared")
        if held_out := max(shard.manifest.hold_out_percent for shard in dataset.shards):
            warn(f"{name}: the {held_out:g}% of {source.recipe.source} that its dataset holds out are compared too")
        paths: dict[tuple[str, str], dict[str, None]] = {}  # by what read them
        for manifest in (shard.manifest for shard in dataset.shards):
            of_reader = paths.setdefault((manifest.adapter, manifest.text_key), {})
            of_reader.update(dict.fromkeys(text.path for text in manifest.sources))
        for (reader, key), names in paths.items():
            parts.append(([Path(path) for path in names], adapter_named(reader, key=key or None)))
    return Corpus(name, tuple(parts), skips_bad=rejected > 0)


def _rows(overlap: Overlap) -> list[list[str]]:
    return [
        [
            Path(side.corpus.name).name,
            Path(other.corpus.name).name,
            f"{len(side.ngrams):,}",
            f"{int(side.duplicates.sum()):,}",
            f"{int((side.ngrams == 0).sum()):,}",
            f"{int(side.within.sum()):,}",
            f"{int((side.hits > 0).sum()):,}",
            f"{int((side.shares >= 0.5).sum()):,}",
        ]
        for side, other in _both(overlap)
    ]


def _both(overlap: Overlap) -> list[tuple[Side, Side]]:
    first, second = overlap.sides
    return [(first, second), (second, first)]
