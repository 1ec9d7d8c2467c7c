"""The `onnxruntime` backend: `model.py` runs inside Triton, and nothing here imports it."""
