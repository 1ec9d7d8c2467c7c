"""Sources of samples and sinks of answers, one file a format.

    --input  ─► open_samples ─► Samples.rows ─► streaming ─► FileIO.decode ─► Sink.write ─► --output

A user's `ClientIO` replaces both ends.
"""

from unitrain.client.io.client_io import ClientIO
from unitrain.client.io.sinks import open_sink
from unitrain.client.io.sources import open_samples

__all__ = ["ClientIO", "open_samples", "open_sink"]
