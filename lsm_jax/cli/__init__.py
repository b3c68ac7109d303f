"""The verbs of the command `lsm`, one module each, and nothing that computes."""
