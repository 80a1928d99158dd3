"""The commands of `megatron-ext study`."""

from __future__ import annotations

from megatron_ext.cli.verb import Verb

VERBS: tuple[Verb, ...] = ()
