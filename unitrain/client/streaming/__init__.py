"""Streaming engine: a bounded number of requests in flight, each sample answered once and in order.

    samples ─► Batcher ─► RequestBuilder ─► InferStream ─► Triton ─► decode_response ─► Request.results

`Stream` drives it, `RetryPolicy` restarts it after a failure, `SharedMemory` carries large tensors.
"""

from unitrain.client.streaming.requests import Result, StreamOptions
from unitrain.client.streaming.stream import Stream

__all__ = ["Result", "Stream", "StreamOptions"]
