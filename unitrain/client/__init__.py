"""Asking a served model: one sample or a stream, with nothing known but what the server says.

`Client` is for Python, `ClientIO` is what a person writes to bring samples to `predict` and take answers.
"""

from unitrain.client.client import DEFAULT_URL, Answer, Client
from unitrain.client.io.client_io import ClientIO
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.requests import Result

__all__ = ["DEFAULT_URL", "Answer", "Client", "ClientIO", "ModelInfo", "Result"]
