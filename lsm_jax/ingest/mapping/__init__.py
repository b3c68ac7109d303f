"""The mapping file: its sections and their keys."""
