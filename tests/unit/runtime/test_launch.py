"""What a process knows of its launcher before torch is imported."""

from __future__ import annotations

import pytest

from data_tools.errors import SetupError
from megatron_ext.runtime.launch import Launch

TWO_RANKS, ALONE = Launch(rank=1, local_rank=1, world_size=2), Launch(rank=0, local_rank=0, world_size=1)


def test_restarts_in_which_ranks_would_not_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(SetupError) as error:
        TWO_RANKS.require_fresh_starts()
    assert str(error.value).startswith("torchrun --max-restarts=3: ranks that are started again would not find each")
    assert "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 where each torchrun is started" in str(error.value)
    ALONE.require_fresh_starts()


@pytest.mark.parametrize(("restarts", "is_shared"), [("0", "True"), ("3", "False"), (None, None)])
def test_other_starts_are_not_refused(
    restarts: str | None, is_shared: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TORCHELASTIC_MAX_RESTARTS", restarts), ("TORCHELASTIC_USE_AGENT_STORE", is_shared)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    TWO_RANKS.require_fresh_starts()
