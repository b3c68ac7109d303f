"""`lsm plan`: compiles the training step for TPUs and GPUs that are not attached, and reports what it would do."""
