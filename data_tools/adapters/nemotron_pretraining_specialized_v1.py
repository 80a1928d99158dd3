"""nvidia/Nemotron-Pretraining-Specialized-v1: `text` and `uuid`, in six folders.

Columns as others report them from the hub's own schema: text, license, metadata.category,
metadata.models_used, uuid, all strings. The domain is that of the folder: Math-Textbooks is math,
STEM-SFT science, Scientific-Coding code; RQA, InfiniByte-Reasoning and Wiki-Rewrite mix domains and
count as general. The words in metadata.category are not confirmed, so it is not read. No turns are marked.
"""

from __future__ import annotations

from data_tools.adapters.plain_text import plain_text

ADAPTER = plain_text(
    name="nemotron-pretraining-specialized-v1",
    data_set="nvidia/Nemotron-Pretraining-Specialized-v1",
    trust="columns reported by others; domains by folder are our reading of its names",
    folders=(("Math-Textbooks", "math"), ("STEM-SFT", "science"), ("Scientific-Coding", "code")),
)
