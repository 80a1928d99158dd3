"""Our pair is Megatron-Core's pair, byte for byte, in both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.indexed import IndexedReader, IndexedWriter

SEED = 0


def random_documents(dtype: str) -> list[np.ndarray]:
    """Fifty documents of 1 to 40 ids, small and large ones."""
    generator = np.random.default_rng(SEED)
    largest = {"uint16": 65_499, "int32": 131_071}[dtype]
    return [generator.integers(0, largest + 1, generator.integers(1, 41)) for _ in range(50)]


def write_ours(prefix: Path, documents: list[np.ndarray], dtype: str) -> None:
    writer = IndexedWriter(Path(f"{prefix}.bin"), dtype=dtype)  # type: ignore[arg-type]
    for start in range(0, len(documents), 7):
        batch = documents[start : start + 7]
        writer.add_documents(np.concatenate(batch), np.array([len(document) for document in batch]))
    writer.finish(Path(f"{prefix}.idx"))


def write_theirs(prefix: Path, documents: list[np.ndarray], dtype: str) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type)
    for document in documents:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_both_files_equal_those_of_megatron_byte_for_byte(tmp_path: Path, dtype: str) -> None:
    documents = random_documents(dtype)
    write_ours(tmp_path / "ours", documents, dtype)
    write_theirs(tmp_path / "theirs", documents, dtype)
    for suffix in (".bin", ".idx"):
        assert Path(f"{tmp_path}/ours{suffix}").read_bytes() == Path(f"{tmp_path}/theirs{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_reads_the_documents_that_we_wrote(tmp_path: Path, dtype: str) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = random_documents(dtype)
    write_ours(tmp_path / "ours", documents, dtype)
    theirs = IndexedDataset(str(tmp_path / "ours"))
    assert [theirs[number].tolist() for number in range(len(theirs))] == [document.tolist() for document in documents]


def test_we_read_a_megatron_pair_with_several_sequences_to_a_document(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(torch.tensor([6, 7]), [2])
    builder.finalize(str(tmp_path / "a.idx"))
    reader = IndexedReader(tmp_path / "a")
    assert [reader[number].tolist() for number in range(len(reader))] == [[1, 2, 3, 4, 5], [6, 7]]
    assert reader.lengths.tolist() == [5, 2]
