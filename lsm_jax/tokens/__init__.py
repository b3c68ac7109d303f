"""Tokens, masks and rows: what of a window a model sees."""
