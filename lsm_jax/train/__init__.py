"""The one training loop and what it stands on: mesh, state, optimizer, checkpoints, clock, metrics."""
