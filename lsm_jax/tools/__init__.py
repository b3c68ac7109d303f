"""Tools around training: compile-only plans for pods, and benchmarks."""
