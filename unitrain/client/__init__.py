"""Generic gRPC client: queries any served model, knowing nothing but the server's metadata.

    samples ─► io/ (files, ClientIO) ─► Client.stream ─► streaming/ ─► Triton ─► Result ─► io/ ─► answers

`Client` is the Python API, `ClientIO` is the base of a user's source and sink, `predict` is the command.
"""

from unitrain.client.client import DEFAULT_URL, Answer, Client
from unitrain.client.io.client_io import ClientIO
from unitrain.client.metadata import ModelInfo
from unitrain.client.streaming.requests import Result

__all__ = ["DEFAULT_URL", "Answer", "Client", "ClientIO", "ModelInfo", "Result"]
