"""Honest speed: contenders take turns in one process, and every figure stands beside the baselines of its own run."""
