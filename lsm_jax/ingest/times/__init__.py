"""Wall clocks, and text as times."""
