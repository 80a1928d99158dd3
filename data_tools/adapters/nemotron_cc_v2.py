"""nvidia/Nemotron-CC-v2, gated: web pages and what was made of them, under `text`.

Second-hand: the column `text` and the folders (Diverse-QA, High-Quality, …). Other columns are not
confirmed. All of it counts as general.
"""

from __future__ import annotations

from data_tools.adapters.plain_text import plain_text

ADAPTER = plain_text(
    name="nemotron-cc-v2",
    data_set="nvidia/Nemotron-CC-v2",
    trust="`text` second-hand; other columns not confirmed",
)
