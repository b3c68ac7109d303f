"""The training loop and its parts: mesh, state, optimizer, checkpoints, clock, metrics."""
