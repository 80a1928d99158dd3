"""The options of te that no GPU has run yet: fp8, CUDA graphs; overlap of tensor parallelism is in test_layouts.py.

Of the toy recipe in bf16. CUDA graphs launch the same kernels: 1e-3 for sums in another order. Products in fp8 round
to 3 bits of mantissa, which moves losses of this size by some hundredths: 0.2, and they must fall.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.runtime.extensions import missing_for_fp8, missing_for_te
from tests.support.toy_project import Run, ToyProject

TE = ("training.backend=te", "precision=bf16", "model.mamba_num_heads=16", "model.mamba_head_dim=8")
"""With widths that are multiples of 16."""


@pytest.fixture(scope="module")
def plain(toy_project: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> Run:
    if missing_for_te():
        pytest.skip(f"not run: te needs {' and '.join(missing_for_te())}")
    return done(toy_project.run(tmp_path_factory.mktemp("plain"), *TE, processes=1, is_launched=True))


def done(run: Run) -> Run:
    assert run.code == 0, run.output
    return run


@pytest.mark.parametrize("scaling", ["tensorwise", "blockwise"])
@pytest.mark.parametrize("edges", [0, 1])
def test_losses_in_fp8_are_near_those_in_bf16_and_resume(
    toy_project: ToyProject, plain: Run, tmp_path: Path, scaling: str, edges: int
) -> None:
    if lack := missing_for_fp8(scaling):
        pytest.skip(f"not run: {lack}")
    keys = (*TE, f"fp8={{recipe: {scaling}, bf16_edge_layers: {edges}}}")
    whole = done(toy_project.run(tmp_path / "whole", *keys, processes=1, is_launched=True))
    assert "products in fp8" in whole.output
    assert whole.losses == pytest.approx(plain.losses, abs=0.2)
    assert whole.losses != plain.losses
    assert whole.losses[-1] < whole.losses[0] - 0.2
    done(toy_project.run(tmp_path / "cut", *keys, "training.max_steps=5", processes=1, is_launched=True))
    rest = done(toy_project.run(tmp_path / "cut", *keys, processes=1, is_launched=True))
    assert rest.losses == pytest.approx(whole.losses, abs=1e-3)


def test_losses_with_cuda_graphs_are_those_without_and_resume(
    toy_project: ToyProject, plain: Run, tmp_path: Path
) -> None:
    keys = (*TE, "training.cuda_graphs=true")
    whole = done(toy_project.run(tmp_path / "whole", *keys, processes=1, is_launched=True))
    assert whole.losses == pytest.approx(plain.losses, abs=1e-3)
    done(toy_project.run(tmp_path / "cut", *keys, "training.max_steps=5", processes=1, is_launched=True))
    rest = done(toy_project.run(tmp_path / "cut", *keys, processes=1, is_launched=True))
    assert rest.losses == pytest.approx(whole.losses, abs=1e-3)


def test_losses_in_fp8_with_cuda_graphs_are_those_without_graphs(toy_project: ToyProject, tmp_path: Path) -> None:
    if lack := "te" if missing_for_te() else missing_for_fp8("tensorwise"):
        pytest.skip(f"not run: {lack}")
    keys = (*TE, "fp8={recipe: tensorwise, bf16_edge_layers: 1}")
    usual, graphed = (
        done(toy_project.run(tmp_path / str(is_asked), *keys, *more, processes=1, is_launched=True)).losses
        for is_asked, more in enumerate(((), ("training.cuda_graphs=true",)))
    )
    assert graphed == pytest.approx(usual, abs=1e-3)
