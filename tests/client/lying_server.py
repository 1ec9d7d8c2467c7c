"""A gRPC server of Triton's protocol that says what a test wants it to say."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

Spoil = Callable[[Any], Any]


def _nothing(_message: Any) -> None:
    pass


class LyingServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves `linear`, y = 2 * x for FP32[?, 3], honestly but for what is spoiled.

    Attributes:
        spoil_metadata: changes the ModelMetadataResponse in place.
        spoil_config: changes the ModelConfigResponse in place.
        spoil: changes an answer in place, or gives the stream's messages in its place, for requests that
            hold a 13.
        statistics: of ModelStatistics: (name, version) pairs.
    """

    def __init__(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.be_honest()
        self._server.start()

    def be_honest(self) -> None:
        """Spoil nothing."""
        self.spoil_metadata: Spoil = _nothing
        self.spoil_config: Spoil = _nothing
        self.spoil: Spoil = _nothing
        self.statistics: list[tuple[str, str]] = [("linear", "1")]

    def stop(self) -> None:
        """End it."""
        self._server.stop(0).wait()

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802 - Triton's names
        """Always."""
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Its models."""
        rows = [{"name": name, "version": version} for name, version in self.statistics]
        return service_pb2.ModelStatisticsResponse(model_stats=rows)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """x: FP32[3] to y: FP32[3]."""
        tensor = {"datatype": "FP32", "shape": [-1, 3]}
        metadata = service_pb2.ModelMetadataResponse(
            name=request.name,
            versions=["1"],
            inputs=[{"name": "x", **tensor}],
            outputs=[{"name": "y", **tensor}],
        )
        self.spoil_metadata(metadata)
        return metadata

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Up to 8 rows a request."""
        answer = service_pb2.ModelConfigResponse(config={"name": request.name, "max_batch_size": 8})
        self.spoil_config(answer)
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One answer."""
        return next(iter(self._answers(request))).infer_response

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        """An answer a request."""
        for request in requests:
            yield from self._answers(request)

    def _answers(self, request: Any) -> list[Any]:
        x = np.frombuffer(request.raw_input_contents[0], np.float32)
        answer = service_pb2.ModelInferResponse(
            id=request.id,
            model_name=request.model_name,
            model_version="1",
            outputs=[{"name": "y", "datatype": "FP32", "shape": request.inputs[0].shape}],
            raw_output_contents=[(2 * x).tobytes()],
        )
        spoiled = self.spoil(answer) if 13 in x else None
        return [service_pb2.ModelStreamInferResponse(infer_response=answer)] if spoiled is None else spoiled
