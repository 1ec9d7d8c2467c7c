"""Backend `onnxruntime`: `model.py` runs inside Triton, and unitrain does not import it."""
