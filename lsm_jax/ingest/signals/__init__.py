"""Minute features of raw signals."""
