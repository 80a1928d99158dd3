"""nvidia/Nemotron-Pretraining-Code-v1, gated: the folder Synthetic-Code, under `text`.

Second-hand: the column `text`. The folder Nemotron-Code-Metadata holds pointers to code and no text; it
is refused for want of that column.
"""

from __future__ import annotations

from data_tools.adapters.plain_text import plain_text

ADAPTER = plain_text(
    name="nemotron-pretraining-code-v1",
    data_set="nvidia/Nemotron-Pretraining-Code-v1 (Synthetic-Code)",
    trust="`text` second-hand; other columns not confirmed",
    domain="code",
)
