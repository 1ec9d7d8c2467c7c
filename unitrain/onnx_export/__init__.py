"""From a module to an ONNX graph that answers as torch does: graph, weights, parity."""
