"""Which entries of a repository are models and versions, and which are somebody else's."""

import os
import re
from pathlib import Path

from unitrain.errors import RepositoryError, UsageError

CONFIG_NAME = "config.pbtxt"
MODEL_NAME = "model.onnx"
GOLDEN_NAME = "golden.npz"
HELD_BACK_NAME = "held_back"
"""Folder of a run with the version that `publish.policy: best` kept from being published last."""
STAGING_NAME = ".unitrain-staging"
"""In a root beside which nothing can be staged: no model's name, so it is none."""
CANDIDATE_PREFIX = "unitrain_candidate_"
"""Names under which `serve` tries versions before it serves them begin with it; they are nobody's models."""
LARGEST_VERSION = 2**63 - 1
"""Triton keeps version numbers in a signed 64-bit integer."""

LABELS = re.compile(r"labels_[A-Za-z0-9_-]+\.txt")
"""Files of class names that config.pbtxt points to."""

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_VERSION = re.compile(r"[1-9][0-9]*")
_READ_AS_NUMBER = re.compile(r"\s*[+-]?([0-9]+)")
_LONGEST_NAME = 128


def check_model_name(name: str) -> str:
    """The name itself, when Triton, a file system and a URL can all carry it.

    Raises:
        UsageError: it has other characters than letters, digits, `_` and `-`, begins with `-`, is
            empty, or is longer than 128.
    """
    if len(name) > _LONGEST_NAME or not _MODEL.fullmatch(name):
        shown = repr(name if len(name) <= _LONGEST_NAME else name[:32] + "…")
        raise UsageError(
            f"a model's name has 1 to {_LONGEST_NAME} letters, digits, _ and -, not beginning with -, "
            f"got {shown}; name it otherwise"
        )
    return name


def entries(directory: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name; nothing where there is no such folder.

    Raises:
        RepositoryError: it is not a folder, or can't be read.
    """
    try:
        with os.scandir(directory) as found:
            return sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RepositoryError(
            f"the model repository can't be read at {directory}: {error.strerror}"
        ) from error


def is_model(entry: os.DirEntry[str]) -> bool:
    """Whether it is a real folder (no symlink) with a model's name and a config.pbtxt."""
    return may_be_model(entry) and _has_file(entry, CONFIG_NAME)


def may_be_model(entry: os.DirEntry[str]) -> bool:
    """Whether it is a real folder (no symlink) with a model's name."""
    return (
        len(entry.name) <= _LONGEST_NAME
        and bool(_MODEL.fullmatch(entry.name))
        and entry.is_dir(follow_symlinks=False)
    )


def version_number(entry: os.DirEntry[str]) -> int | None:
    """The version that this folder is, or None: `007`, `5x`, a file, a link or an empty folder are none."""
    return folder_number(entry) if _has_file(entry, MODEL_NAME) else None


def folder_number(entry: os.DirEntry[str]) -> int | None:
    """The version that a real folder (no symlink) has the name of, or None."""
    if not _VERSION.fullmatch(entry.name) or int(entry.name) > LARGEST_VERSION:
        return None
    return int(entry.name) if entry.is_dir(follow_symlinks=False) else None


def claimed_number(name: str) -> int:
    """The number that Triton may take an entry for, whatever it is; 0 for none.

    Triton parses names as C does: `5x` is version 5, and so is a file or a link of that name. A new
    version must be larger than these too, or it would not be the latest.
    """
    digits = _VERSION.match(name)
    number = int(digits[0]) if digits else 0
    return number if number <= LARGEST_VERSION else 0


def ends_triton(name: str) -> bool:
    """Whether a folder of this name ends Triton: it reads a number there, and that one is too large for it."""
    digits = _READ_AS_NUMBER.match(name)
    return digits is not None and int(digits[1]) > LARGEST_VERSION


def _has_file(entry: os.DirEntry[str], name: str) -> bool:
    try:
        return Path(entry.path, name).is_file()
    except PermissionError:  # another person's folder
        return False
