"""Samples from a folder's files (images and arrays), and answers into a folder, one file a sample."""

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.io.numpy_files import load_npy, load_npz
from unitrain.client.io.samples import NamedSample, Note, SampleOrError, Samples
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError, UsageError
from unitrain.signature import TensorSpec

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_ARRAY_SUFFIXES = (".npy", ".npz")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's image mode by number of channels."""
_ANSWER = re.compile(r"(\d{8,})(_.*)?(\.npz|\.error\.txt)\Z")
"""File name of an answer, with the sample's index first."""


# --- reading


def folder_samples(source: str, model: ModelInfo, note: Note) -> Samples:
    """Open a folder's files as samples, one a file, in the order of their names.

    An unreadable file becomes an error in its place.

    Args:
        source: folder, or a pattern such as `images/**/*.png`.
        model: model that takes the samples. Images and `.npy` files are its only input; `.npz` files hold
            inputs by name.
        note: receives the number of ignored files.

    Raises:
        DataError: there are no images or arrays.
        UsageError: images for a model of several inputs, or without Pillow.
    """
    paths = sorted(Path(source).iterdir() if Path(source).is_dir() else map(Path, _matches(source)))
    suffixes = (*_ARRAY_SUFFIXES, *_IMAGE_SUFFIXES)
    known = [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    if not known:
        raise DataError(f"{source}: expected files of {', '.join(suffixes)}, got {len(paths)} others")
    ignored = len(paths) - len(known)
    if ignored:
        note(f"{source}: ignored {ignored} {'entry' if ignored == 1 else 'entries'} of other kinds")
    if len(model.inputs) != 1 and any(path.suffix.lower() != ".npz" for path in known):
        names = ", ".join(spec.name for spec in model.inputs)
        raise UsageError(f"{source}: the model's inputs are {names}, so each sample must be a .npz file")
    if any(path.suffix.lower() in _IMAGE_SUFFIXES for path in known):
        _pillow()
    return Samples(_read_files(known, model), len(known))


def read_image(path: Path, spec: TensorSpec) -> Array:
    """Read an image as [height, width], with an axis of channels last or first as the input has it.

    Values are as in the file: 0 to 255, or to 65535 for 16-bit grey. Scaling is the model's `preprocess`.
    Nothing is resized.

    Raises:
        DataError: it is no image, or the input takes none.
    """
    pillow = _pillow()
    axis, channels = _channel_axis(spec)
    try:
        with pillow.open(path) as image:
            deep = image.mode.startswith(("I", "F"))
            array = np.asarray(image if deep and channels == 1 else image.convert(_MODES[channels]))
    except Exception as error:  # Pillow's decoders raise many kinds for a damaged file
        raise DataError(f"{path}: is no readable image: {' '.join(str(error).split())}") from error
    if axis is not None:
        planes = array[..., None] if array.ndim == 2 else array  # noqa: PLR2004 - height and width alone
        array = np.moveaxis(planes, -1, axis)
    return array


def _matches(pattern: str) -> list[str]:
    return glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern


def _read_files(paths: list[Path], model: ModelInfo) -> Iterator[SampleOrError]:
    for path in paths:
        try:
            values = _read(path, model)
            _check_shapes(values, model, path)
            yield NamedSample(values, path.name)
        except DataError as error:
            yield error


def _read(path: Path, model: ModelInfo) -> Mapping[str, Any]:
    if path.suffix.lower() == ".npz":
        arrays = load_npz(path)
        return {spec.name: arrays[spec.name] for spec in model.inputs if spec.name in arrays}
    spec = model.inputs[0]
    return {spec.name: load_npy(path) if path.suffix.lower() == ".npy" else read_image(path, spec)}


def _check_shapes(values: Mapping[str, Any], model: ModelInfo, path: Path) -> None:
    """Check that a file holds one sample, without a batch axis, so that an error names the file."""
    for spec in model.inputs:
        if spec.name not in values:
            raise DataError(
                f"{path}: there is no array {spec.name}; the model's inputs are {', '.join(map(str, model.inputs))}"
            )
        shape = values[spec.name].shape
        if len(shape) != len(spec.dims) or any(
            d not in (-1, n) for d, n in zip(spec.dims, shape, strict=True)
        ):
            raise DataError(f"{path}: expected one sample of {spec}, got the shape {list(shape)}")


def _channel_axis(spec: TensorSpec) -> tuple[int | None, int]:
    """Return the index of an image's axis of channels (None: it has none), and the number of channels."""
    dims = spec.dims
    if len(dims) == 2:  # noqa: PLR2004 - height and width alone
        return None, 1
    if len(dims) == 3:  # noqa: PLR2004 - and channels
        for axis in (2, 0):
            if dims[axis] in _MODES:
                return axis, dims[axis]
    raise DataError(
        f"input {spec} takes no image; expected [height, width] with 1, 3 or 4 channels first or last"
    )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("images need Pillow, which is not installed; `pip install pillow`") from error
    return Image


# --- writing


class FolderSink:
    """Write each sample's outputs and `version` to `00000003.npz`, or its error to `00000003.error.txt`.

    The number is the sample's index. A sample's name in the source follows it: `00000003_cat.npz`.

    Attributes:
        done: index after the last sample that an earlier run wrote.
    """

    def __init__(self, directory: Path, outputs: tuple[TensorSpec, ...], *, resume: bool) -> None:
        self._directory = directory
        self._names = [spec.name for spec in outputs]
        directory.mkdir(parents=True, exist_ok=True)
        matches = (_ANSWER.match(path.name) for path in directory.iterdir())
        self.done = max((int(match[1]) + 1 for match in matches if match), default=0)
        if self.done and not resume:
            raise DataError(
                f"{directory}: holds the answers to {self.done} samples; continue after them by --resume, or name "
                "another folder"
            )

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        arrays = {
            output: array.astype("S") if array.dtype == object else array
            for output, array in ((output, np.asarray(outputs[output])) for output in self._names)
        }
        path = self._path(index, name, ".npz")
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays, version=np.int64(version))
        temporary.replace(path)

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        self._path(index, name, ".error.txt").write_text(f"{error}\n", encoding="utf-8")

    def close(self) -> None:
        """Do nothing: each file is complete once it is written."""

    def _path(self, index: int, name: str | None, suffix: str) -> Path:
        stem = f"{index:08d}" if name is None else f"{index:08d}_{Path(name).stem}"
        return self._directory / f"{stem}{suffix}"
