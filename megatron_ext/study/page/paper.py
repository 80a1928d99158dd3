"""What a reader must know of the paper's own numbers before laying them beside others."""

PAPER_WARNINGS = (
    "The paper's numbers are of an 8B hybrid trained on 1T tokens. A small model shows the direction at best.",
    "The paper gives no seeds and no intervals. AIME has 30 questions: one of them is 3.3 points.",
    "In RL the gap between the paper's two arms narrows, from 20.79 to 18.75 points on the same eight benchmarks; its "
    "text says that it continues to diverge.",
    "The 39.32 % on AIME that the paper reports after RL is not reproducible from its table 3, where the gap is 25.42 "
    "points.",
    "Means after pretraining (four domains), after SFT (four domains, or nine benchmarks) and after RL (eight "
    "benchmarks) are of other tasks: compare within one kind of stage alone.",
    "The paper reports no search for its benchmarks in its training data.",
    "Where each number stands, and what contradicts what: docs/reference/paper.md, docs/reference/expected-results.md.",
)
"""Source: docs/reference/paper.md, docs/reference/expected-results.md."""
