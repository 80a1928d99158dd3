"""Who else reads a model: Hugging Face checkpoints, out and in."""
