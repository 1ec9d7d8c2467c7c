"""The event file that makes a folder a run in TensorBoard's eyes."""

import os
import socket
import struct
import time
from pathlib import Path


def event_file_bytes() -> bytes:
    """An event file that holds nothing but its version, as TensorBoard's own writer begins one."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    data: bytes = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return b"".join((length, checks[0], data, checks[1]))


def event_file_path(directory: Path) -> Path:
    """Where an event file of this process lies in a folder."""
    host = socket.gethostname()
    return directory / f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.0"
