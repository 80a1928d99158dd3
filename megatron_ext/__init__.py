"""Where reasoning data goes, pretraining, SFT or RL: a thin layer over Megatron-Core."""
