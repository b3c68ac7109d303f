"""Flax NNX modules. Parameter paths are ours and stable: a checkpoint outlives a refactor."""
