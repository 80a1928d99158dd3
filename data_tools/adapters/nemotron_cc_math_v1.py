"""nvidia/Nemotron-CC-Math-v1, gated: mathematics from the web, under `text`.

Second-hand: the column `text` and the folders (3, 4plus, 4plus_MIND). Other columns are not confirmed.
"""

from __future__ import annotations

from data_tools.adapters.plain_text import plain_text

ADAPTER = plain_text(
    name="nemotron-cc-math-v1",
    data_set="nvidia/Nemotron-CC-Math-v1",
    trust="`text` second-hand; other columns not confirmed",
    domain="math",
)
