"""Untrusted files: listed, opened, and set aside where they are damaged."""
