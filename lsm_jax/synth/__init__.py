"""A synthetic cohort: bodies, days and devices whose truth is known."""
