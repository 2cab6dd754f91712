"""PyTorch modules: attention first, then what is built from it."""
