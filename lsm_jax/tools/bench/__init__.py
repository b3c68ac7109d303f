"""Honest speed: contenders take turns on one machine, and every figure stands beside the baselines of its own run."""
