"""What a pod will do, known before it is paid for: the real training step, compiled without the hardware."""
