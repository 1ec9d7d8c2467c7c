"""Sinks of answers that `--output` names: files, a folder, standard output, TensorBoard's Projector.

Each sample has its row, line or file; a failed one also has one. Answers are written as they arrive. An
interrupted output is valid up to its last complete row, and `resume` continues after it.
"""

import sys
from pathlib import Path
from typing import Protocol

from unitrain.client.input_validation import Array
from unitrain.client.io.samples import FILE_SUFFIXES
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError, UsageError
from unitrain.signature import TensorSpec

PROJECTOR = "projector:"


class Sink(Protocol):
    """Output of a prediction.

    Attributes:
        done: number of samples that an earlier run wrote. The next one written has this index.
    """

    done: int

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        """Write one sample's outputs.

        Args:
            index: place of the sample in the source, from 0.
            outputs: arrays by output name, without a batch axis.
            version: model version that answered.
            name: sample's name in the source, if it has one.
        """

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        """Write one sample's error in place of its outputs."""

    def close(self) -> None:
        """Write the remaining rows and close the files."""


def check_sink(target: str, *, resume: bool) -> None:
    """Check that `--output` names a sink, and one that can be resumed if it has to be.

    Raises:
        UsageError: it is neither a known kind of file, a folder, `projector:DIR` nor `-`; or it keeps no rows.
    """
    keeps_no_rows = target == "-" or target.startswith(PROJECTOR)
    if not keeps_no_rows and not _is_folder(target) and Path(target).suffix not in FILE_SUFFIXES:
        raise UsageError(
            f"--output: expected {', '.join(FILE_SUFFIXES)}, a folder (DIR/), {PROJECTOR}DIR or `-`, got `{target}`"
        )
    if keeps_no_rows and resume:
        raise UsageError(f"--resume: {target} keeps no rows to continue after; name a file or a folder")


def open_sink(target: str, model: ModelInfo, output_name: str | None, *, resume: bool = False) -> Sink:
    """Open the sink that `--output` names.

    Args:
        target: name of the sink, see `check_sink`.
        model: model that answers.
        output_name: name of the one output to write; None: all outputs.
        resume: continue after the existing rows rather than replace them.

    Raises:
        UsageError: there is no such output, or a `.npy` file would hold more than one.
        DataError: it can't be written, or its existing rows are another model's.
    """
    check_sink(target, resume=resume)
    outputs = _chosen_outputs(target, model, output_name)
    if target == "-":
        from unitrain.client.io.text_files import JsonLinesSink

        return JsonLinesSink(sys.stdout, outputs, flush_every_s=0.0)
    try:
        return _open_file(target, model, outputs, resume=resume)
    except OSError as error:
        raise DataError(f"{target}: can't be written: {error.strerror or error}") from error


def _open_file(target: str, model: ModelInfo, outputs: tuple[TensorSpec, ...], *, resume: bool) -> Sink:
    path = Path(target)
    if target.startswith(PROJECTOR):
        from unitrain.client.io.projector_sink import ProjectorSink

        return ProjectorSink(Path(target.removeprefix(PROJECTOR)), model, outputs)
    if _is_folder(target):
        from unitrain.client.io.folders import FolderSink

        return FolderSink(path, outputs, resume=resume)
    if path.suffix in (".npy", ".npz"):
        from unitrain.client.io.numpy_files import NpySink, NpzSink

        if not model.signature.batched and resume:
            raise UsageError(f"--resume: {model.name} has no batch axis, so {path} has no rows; use .jsonl")
        if path.suffix == ".npz":
            return NpzSink(path, outputs, rows=model.signature.batched, resume=resume)
        return NpySink(path, outputs[0], rows=model.signature.batched, resume=resume)
    from unitrain.client.io.text_files import CsvSink, JsonLinesSink

    kind = JsonLinesSink if path.suffix == ".jsonl" else CsvSink
    done = kind.keep_complete_rows(path, outputs) if resume and path.exists() else 0
    file = path.open("a" if resume else "w", encoding="utf-8", newline="")
    return kind(file, outputs, done=done)


def _chosen_outputs(target: str, model: ModelInfo, output_name: str | None) -> tuple[TensorSpec, ...]:
    known = {spec.name: spec for spec in model.outputs}
    if output_name is not None and output_name not in known:
        raise UsageError(
            f"--output-name: model {model.name} has the outputs {', '.join(known)}, got `{output_name}`"
        )
    outputs = tuple(known.values()) if output_name is None else (known[output_name],)
    if Path(target).suffix == ".npy" and not _is_folder(target) and len(outputs) != 1:
        names = ", ".join(known)
        raise UsageError(
            f"--output: a .npy file holds one output of {names}; name it with --output-name, or use .npz"
        )
    return outputs


def _is_folder(target: str) -> bool:
    return target.endswith("/") or Path(target).is_dir()
