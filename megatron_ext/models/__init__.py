"""What is trained: a hybrid of Mamba-2, attention and MLP layers on Megatron-Core."""
