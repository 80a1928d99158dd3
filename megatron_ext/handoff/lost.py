"""What neither engine does, whatever the recipe says; and keys of it that have no meaning there."""

from __future__ import annotations

from megatron_ext.handoff.facts import StageFacts
from megatron_ext.handoff.settings import Lost


def lost_in_both(facts: StageFacts) -> list[Lost]:
    """What is not carried over to any engine.

    Args:
        facts: The stage.
    """
    plan, rl = facts.plan, facts.rl
    assert plan.rl is not None, "an rl stage is handed off"
    lost = [
        Lost(
            "seed",
            "an engine draws other random numbers: completions are others, and resume as exact as it is there",
        ),
        Lost("rl.mismatch_threshold", f"{rl.mismatch_threshold:g}: the mismatch is logged, and nothing stops above it"),
        Lost("rl.engine", f"{rl.engine}: the engine samples with a generation backend of its own"),
        Lost("rl.slots", "the sampler decides how many completions it advances at once"),
        Lost("rl.max_epochs", "repeated prompts stand in the rows; the engine asks nobody"),
        Lost(
            "training.sequence_length",
            f"{plan.batch.sequence_length:,}: completions are not packed into rows, for states would pass between them",
        ),
        Lost("optimizer.weight_decay", "core's rule: kernels of convolutions decay there, and do not here"),
        Lost("logging", "no ledger of tokens, no rollouts/step_N.jsonl.zst, no intervals of held-out pass rates"),
        Lost("checkpoint.interval_tokens", "checkpoints are the engine's; export them there, and import that here"),
        Lost("training.backend", "kernels are the engine's: log-probabilities differ in their last digits"),
    ]
    known, padded = plan.data.tokenizer_vocab_size, plan.model_size.padded_vocab_size
    if known < padded:
        what = f"an engine may sample ids {known:,} to {padded - 1:,}, which no token has; ours never does"
        lost.append(Lost("model.vocab_size", what))
    if plan.rl.max_sampled_tokens:
        what = f"{plan.rl.max_sampled_tokens:,}: an engine does not end at sampled tokens; lower the steps by hand"
        lost.append(Lost("budget.tokens", what))
    return lost
