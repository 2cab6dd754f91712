"""Training: data, one loop, one recipe a model."""
