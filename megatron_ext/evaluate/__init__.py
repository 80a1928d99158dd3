"""How good a checkpoint is: held-out loss, verifiable tasks, other people's benchmarks, in one form of results."""
