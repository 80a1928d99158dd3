"""Who else runs an rl stage: verl and NeMo-RL."""
