"""Pre-training foundation models on wearable sensor data: LSM-2 and SensorLM in JAX."""

__version__ = "0.1.0"
