"""`lsm plan`: compiles the training step for TPUs and GPUs that are not there, and reports what it would do."""
