"""Export a trained model to an ONNX bundle that the runtime serves, with parity in bits."""
