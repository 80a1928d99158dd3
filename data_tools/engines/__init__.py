"""Engines that others wrote, driven over the shards of a plan: Slurm arrays and Ray."""
