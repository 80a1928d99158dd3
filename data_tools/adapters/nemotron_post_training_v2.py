"""nvidia/Nemotron-Post-Training-Dataset-v2: as v1, without `metadata`.

Not confirmed: the words in `category` (chat, code, math, stem and multilingual_* are the splits).
"""

from __future__ import annotations

from dataclasses import replace

from data_tools.adapters import nemotron_post_training_v1

ADAPTER = replace(
    nemotron_post_training_v1.ADAPTER,
    name="nemotron-post-training-v2",
    data_set="nvidia/Nemotron-Post-Training-Dataset-v2",
    trust="columns confirmed; words in `category` are not",
)
