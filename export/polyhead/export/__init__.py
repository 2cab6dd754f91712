"""Export: a checkpoint becomes a verified bundle of ONNX graphs."""
