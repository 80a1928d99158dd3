"""The Language Model Evaluation Harness's view of our engine: an `LM` that scores and samples with it.

What a task asks is turned into tokens exactly as the harness's own `hf` model does it for the exported checkpoint:
the same tokenizer library with the same special tokens, the same borders between context and continuation, the same
truncation from the left, the same cutting of answers (Source: lm-eval 0.4.13, `models/huggingface.py`). So numbers
agree, tests/parity/test_lm_eval_vs_hf.py. Where that model only warns, or says nothing, every cut is counted here.

Towards the harness there is one process with all requests; the data-parallel ranks share them inside. The harness's
own sharing repeats requests on ranks that have fewer, which would count an answer twice where `repeats` asks for
several.

Each answer is kept when it is there, so a run that goes on asks only what is missing. The harness's own cache of
requests keeps them when all of a kind are answered, and none that was sampled.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data_tools.errors import DataError, UsageError
from megatron_ext.evaluate.continuations import Continuation, ContinuationScorer, Score
from megatron_ext.evaluate.kept_items import KeptItems, Key, Line, runs_of_missing
from megatron_ext.evaluate.lm_eval_checks import require_room, sampling_asked
from megatron_ext.evaluate.shared_lines import lines_of_all_ranks
from megatron_ext.rollout.protocol import Completion, Prompt, Sampling

Generate = Callable[[Sequence[Prompt], Sampling, Callable[[Completion], None]], Any]
"""Samples this rank's share of prompts and calls the last argument with each answer; all ranks call it."""


@dataclass
class Cuts:
    """What did not fit, counted; nothing of it is silent.

    Attributes:
        shortened_contexts: Requests whose context lost tokens at its beginning.
        dropped_tokens: That they lost.
        split_texts: Texts of rolling likelihood that were read in several windows.
        length_limited: Answers that reached their limit of new tokens.
    """

    shortened_contexts: int = 0
    dropped_tokens: int = 0
    split_texts: int = 0
    length_limited: int = 0

    def notes(self, max_length: int) -> list[str]:
        """A sentence for each that is not zero."""
        found = []
        if self.shortened_contexts:
            found.append(
                f"{self.shortened_contexts:,} contexts were longer than the model's {max_length:,} tokens allow and "
                f"lost {self.dropped_tokens:,} tokens at their beginning, as with lm-eval's hf model"
            )
        if self.split_texts:
            found.append(f"{self.split_texts:,} texts were longer than {max_length:,} tokens and read in windows")
        if self.length_limited:
            found.append(f"{self.length_limited:,} answers reached their limit of new tokens")
        return found


@dataclass(kw_only=True, eq=False)
class EngineLM(TemplateLM):
    """Our engine as the harness's model.

    Attributes:
        tokenizer: Of the checkpoint, as transformers reads it.
        scorer: Of likelihoods.
        generate: Of answers.
        max_length: Tokens of a text at most.
        stop_ids: Tokens that end an answer, as the exported generation config has them.
        dp_group: Ranks that share the requests.
        items: Where answers are kept.
        label: Name of the task that they are kept under.
        seed: Of sampled answers.
        on_done: Called with how many requests were answered.
        cuts: What did not fit.
    """

    tokenizer: Any
    scorer: ContinuationScorer
    generate: Generate
    max_length: int
    stop_ids: frozenset[int]
    dp_group: dist.ProcessGroup
    items: KeptItems
    label: str
    seed: int = 1234
    on_done: Callable[[int], None] = lambda _: None
    cuts: Cuts = field(default_factory=Cuts)

    def __post_init__(self) -> None:
        super().__init__()
        self.tok_encode = functools.lru_cache(maxsize=256)(self._encode)  # a question's context comes once an answer

    @property
    def eot_token_id(self) -> int:
        """The end-of-document token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Of the tokenizer and its chat template; the harness names caches by it."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; replaced by a cached one in every instance."""
        return self._encode(string, add_special_tokens)

    def _encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **chosen))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, in the checkpoint's chat template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the likeliest text."""
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each whole text, in windows of `max_length` tokens."""
        windows: list[tuple[list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text)
            found = get_rolling_token_windows(
                token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            windows += (parts := [make_disjoint_window(window) for window in found])
            counts.append(len(parts))
        self.cuts.split_texts += sum(count > 1 for count in counts)
        scores = iter(self._score([self._continuation(*window) for window in windows]))
        return [float(sum(next(scores).log_prob for _ in range(count))) for count in counts]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return [tuple(score) for score in self._score([self._continuation(*ids) for _, *ids in requests])]

    def _continuation(self, context: list[int], continuation: list[int]) -> Continuation:
        if not 0 < len(continuation) <= self.max_length:
            raise UsageError(
                f"a continuation of {len(continuation):,} tokens: must have at least 1 and fit the model's "
                f"{self.max_length:,}; shorten the task's answers, or evaluate with --set max_length=N if the model "
                "may read longer texts than it was trained on."
            )
        self._count_dropped(len(context) + len(continuation) - self.max_length - 1)
        return Continuation(tuple((context + continuation)[-(self.max_length + 1) :]), len(continuation))

    def _count_dropped(self, tokens: int) -> None:
        if tokens > 0:
            self.cuts.shortened_contexts += 1
            self.cuts.dropped_tokens += tokens

    def _score(self, continuations: list[Continuation]) -> list[Score]:
        """Scores on the data-parallel ranks, each with its share of the passes."""
        self._require_same(continuations)
        keys = [(_hash_of(one), 0) for one in continuations]
        passes = self.scorer.passes(continuations)

        def find(there: Mapping[Key, Line]) -> list[Line]:
            missing = [one for one in passes if any(keys[index] not in there for index in one)]
            self.on_done(sum(map(len, passes)) - sum(map(len, missing)))
            found = []
            for one in missing[self.dp_group.rank() :: self.dp_group.size()]:
                scores = self.scorer.score([continuations[index] for index in one])
                new = {keys[index]: score for index, score in zip(one, scores, strict=True) if keys[index] not in there}
                found += [self.items.add(self.label, item, **score._asdict()) for (item, _), score in new.items()]
                self.on_done(len(one))
            return found

        lines = lines_of_all_ranks(self.items, self.label, find)
        return [Score(lines[key]["log_prob"], lines[key]["is_greedy"]) for key in keys]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answers to each context, up to a stop string or the limit of new tokens."""
        answers: dict[int, str] = {}
        alike: dict[str, list[int]] = {}
        for index, (_, kwargs) in enumerate(request.args for request in requests):
            alike.setdefault(repr(sorted(kwargs.items())), []).append(index)
        for indices in alike.values():
            kwargs = requests[indices[0]].args[1]
            found = self._generate([requests[index].args[0] for index in indices], kwargs)
            answers.update(zip(indices, found, strict=True))
        return [answers[index] for index in range(len(requests))]

    def _generate(self, contexts: list[str], kwargs: Mapping[str, Any]) -> list[str]:
        """Answers to contexts of one way of sampling; a context that comes k times is read once and sampled k times."""
        self._require_same([contexts, sorted(kwargs.items())])
        sampling, until = self._sampling(kwargs)
        require_room(sampling.max_new_tokens, self.max_length)
        room = self.max_length - sampling.max_new_tokens
        counts = Counter(contexts)
        prompts = {}
        for context in counts:
            ids = self.tok_encode(context)
            self._count_dropped(len(ids) - room)
            prompts[context] = Prompt(tuple(ids[-room:]), seed=self._seed_of(context))
        items = {context: _hash_of((context, sorted(kwargs.items()))) for context in counts}

        def find(there: Mapping[Key, Line]) -> list[Line]:
            runs = {context: runs_of_missing(items[context], there, count) for context, count in counts.items()}
            asked = [(context, first, count) for context in counts for first, count in runs[context]]
            self.on_done(len(contexts) - sum(count for _, _, count in asked))
            found: list[Line] = []

            def keep(one: Completion) -> None:
                text = self.tokenizer.decode(list(one.token_ids), skip_special_tokens=True)
                values = {"text": postprocess_generated_text(text, until, None), "finish": one.finish}
                item = items[asked[one.prompt_index][0]]
                found.append(self.items.add(self.label, item, sample=one.sample_index, **values))
                self.on_done(1)

            if asked:
                wanted = [
                    replace(prompts[context], first_sample=first, num_samples=count) for context, first, count in asked
                ]
                self.generate(wanted, sampling, keep)
            return found

        lines = lines_of_all_ranks(self.items, self.label, find)
        given: Counter[str] = Counter()
        texts = []
        for context in contexts:
            line = lines[items[context], given[context]]
            given[context] += 1
            self.cuts.length_limited += line["finish"] == "length"
            texts.append(line["text"])
        return texts

    def _sampling(self, kwargs: Mapping[str, Any]) -> tuple[Sampling, list[str]]:
        """How a task wants its answers, and the strings that they are cut at."""
        asked = sampling_asked(kwargs)
        until = handle_stop_sequences(asked["until"], eos=self.tokenizer.decode([self.eot_token_id]))
        sampling = Sampling(
            asked["max_gen_toks"],
            temperature=float(asked.get("temperature", 0.0)),
            top_k=int(asked.get("top_k") or 0),
            top_p=float(asked.get("top_p", 1.0)),
            stop_ids=self.stop_ids,
            stop_strings=tuple(string for string in until if string),
        )
        return sampling, until

    def _seed_of(self, context: str) -> int:
        """Another one for each context, whatever stands beside it."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}\n{context}".encode()).digest()[:7], "big")

    def _require_same(self, asked: Any) -> None:
        """Refuses ranks that were asked otherwise: each would answer its share of another list."""
        digests: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(digests, hashlib.sha256(repr(asked).encode()).hexdigest())
        if len(set(digests)) > 1:
            raise DataError(
                "the ranks made different questions of the same task: its files or its data differ between the "
                "machines, or its code draws random numbers of its own; evaluate on one rank, or make them the same."
            )


def _hash_of(request: Any) -> str:
    """Name of a request among those of its task."""
    return hashlib.sha256(repr(request).encode()).hexdigest()[:32]


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint as transformers reads it, which is how lm-eval's `hf` model reads an export."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
