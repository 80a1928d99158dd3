"""Raw text into verified Megatron datasets; needs neither torch nor `megatron_ext`."""
