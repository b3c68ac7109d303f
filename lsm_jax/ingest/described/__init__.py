"""Reads tables that a mapping file describes."""
