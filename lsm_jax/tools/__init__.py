"""Tools beside training: plans for pods nobody has here, and benchmarks."""
