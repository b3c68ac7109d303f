"""Empatica E4."""
