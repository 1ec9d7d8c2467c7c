"""Where answers go: files, a folder, standard output, TensorBoard's Projector.

Every sample has its row, line or file, a failed one too. All is written as results come; what is
interrupted is whole up to its last row, and goes on from there when it is opened with `resume`.
"""

import sys
from pathlib import Path
from typing import Protocol

from unitrain.client.input_validation import Array
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError, UsageError
from unitrain.signature import TensorSpec

SUFFIXES = (".csv", ".npy", ".npz", ".jsonl")
PROJECTOR = "projector:"


class Sink(Protocol):
    """Where answers go.

    Attributes:
        done: samples that were there when it was opened; the next one written is the `done`-th, from 0.
    """

    done: int

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        """Take one sample's outputs; `name` is what the source calls the sample, where it has names."""

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        """Take one sample's error."""

    def close(self) -> None:
        """Write what is left."""


def check_sink(target: str, *, resume: bool) -> None:
    """Refuse what no sink is named by, or what can't be resumed.

    Raises:
        UsageError: it is neither a known kind of file, a folder, `projector:DIR` nor `-`.
    """
    kept = target == "-" or target.startswith(PROJECTOR)
    if not kept and not _is_folder(target) and Path(target).suffix not in SUFFIXES:
        raise UsageError(
            f"--output: expected {', '.join(SUFFIXES)}, a folder (DIR/), {PROJECTOR}DIR or `-`, got `{target}`"
        )
    if kept and resume:
        raise UsageError(f"--resume: {target} keeps nothing to go on after; name a file or a folder")


def open_sink(target: str, model: ModelInfo, output_name: str | None, *, resume: bool = False) -> Sink:
    """The sink that `--output` names.

    Args:
        target: see `check_sink`.
        model: whose answers it takes.
        output_name: the one output that it is to hold; None: all of them.
        resume: go on after what is there, rather than begin anew.

    Raises:
        UsageError: `.npy` is to hold more than one output, or there is no such output.
        DataError: it can't be written, or what is there is of another model.
    """
    check_sink(target, resume=resume)
    outputs = _chosen(target, model, output_name)
    if target == "-":
        from unitrain.client.io.text_files import JsonLines

        return JsonLines(sys.stdout, outputs, flush_every_s=0.0)
    try:
        return _open_file(target, model, outputs, resume=resume)
    except OSError as error:
        raise DataError(f"{target}: can't be written: {error.strerror or error}") from error


def _open_file(target: str, model: ModelInfo, outputs: tuple[TensorSpec, ...], *, resume: bool) -> Sink:
    path = Path(target)
    if target.startswith(PROJECTOR):
        from unitrain.client.io.projector_sink import ProjectorSnapshot

        return ProjectorSnapshot(Path(target.removeprefix(PROJECTOR)), model, outputs)
    if _is_folder(target):
        from unitrain.client.io.folders import Folder

        return Folder(path, outputs, resume=resume)
    if path.suffix in (".npy", ".npz"):
        from unitrain.client.io.numpy_files import Npy, Npz

        if not model.signature.batched and resume:
            raise UsageError(f"--resume: {model.name} has no batch axis, so {path} has no rows; use .jsonl")
        if path.suffix == ".npz":
            return Npz(path, outputs, rows=model.signature.batched, resume=resume)
        return Npy(path, outputs[0], rows=model.signature.batched, resume=resume)
    from unitrain.client.io.text_files import Csv, JsonLines

    kind = JsonLines if path.suffix == ".jsonl" else Csv
    done = kind.whole_rows(path, outputs) if resume and path.exists() else 0
    file = path.open("a" if resume else "w", encoding="utf-8", newline="")
    return kind(file, outputs, done=done)


def _chosen(target: str, model: ModelInfo, output_name: str | None) -> tuple[TensorSpec, ...]:
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
