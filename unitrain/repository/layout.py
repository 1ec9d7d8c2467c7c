"""Layout of the repository on the disk: names of files, and tests for models and versions."""

import os
import re
from pathlib import Path

from unitrain.errors import RepositoryError, UsageError
from unitrain.repository import integrity

CONFIG_NAME = "config.pbtxt"
MODEL_NAME, GOLDEN_NAME, MANIFEST_NAME = integrity.MODEL_NAME, integrity.GOLDEN_NAME, integrity.MANIFEST_NAME
HELD_BACK_NAME = "held_back"
"""Folder of a run with the last version that `publish.policy: best` held back."""
STAGING_NAME = ".unitrain-staging"
"""Staging folder inside the root, used if none can be created beside it; it is no valid model name."""
CANDIDATE_PREFIX = "unitrain_candidate_"
"""Prefix of the temporary names under which `serve` verifies versions before it serves them."""
LARGEST_VERSION = 2**63 - 1
"""Triton keeps version numbers in a signed 64-bit integer."""

LABELS = re.compile(r"labels_[A-Za-z0-9_-]+\.txt")
"""Names of the files with class names that config.pbtxt refers to."""

_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_VERSION = re.compile(r"[1-9][0-9]*")
_READ_AS_NUMBER = re.compile(r"\s*[+-]?([0-9]+)")
_LONGEST_NAME = 128


def check_model_name(name: str) -> str:
    """Return the name if it is valid for Triton, a file system and a URL.

    Raises:
        UsageError: it has other characters than letters, digits, `_` and `-`, begins with `-`, is
            empty, or is longer than 128.
    """
    if len(name) > _LONGEST_NAME or not _MODEL.fullmatch(name):
        shown = repr(name if len(name) <= _LONGEST_NAME else name[:32] + "…")
        raise UsageError(
            f"a model's name has 1 to {_LONGEST_NAME} letters, digits, _ and -, not beginning with -, "
            f"got {shown}; choose another name"
        )
    return name


def entries(directory: Path) -> list[os.DirEntry[str]]:
    """Return a folder's entries, sorted by name; an empty list if there is no such folder.

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
    """Return True for a real folder (no symlink) with a valid model name and a config.pbtxt."""
    return may_be_model(entry) and _has_file(entry, CONFIG_NAME)


def may_be_model(entry: os.DirEntry[str]) -> bool:
    """Return True for a real folder (no symlink) with a valid model name."""
    return (
        len(entry.name) <= _LONGEST_NAME
        and bool(_MODEL.fullmatch(entry.name))
        and entry.is_dir(follow_symlinks=False)
    )


def version_number(entry: os.DirEntry[str]) -> int | None:
    """Return the version number of a folder; None for `007`, `5x`, a file, a link or a folder without a model."""
    return folder_number(entry) if _has_file(entry, MODEL_NAME) else None


def folder_number(entry: os.DirEntry[str]) -> int | None:
    """Return the version number in the name of a real folder (no symlink); None for other entries."""
    if not _VERSION.fullmatch(entry.name) or int(entry.name) > LARGEST_VERSION:
        return None
    return int(entry.name) if entry.is_dir(follow_symlinks=False) else None


def claimed_number(name: str) -> int:
    """Return the version number that Triton may read in a name of any entry; 0 for none.

    Triton parses names as C does: `5x` is version 5, even if it is a file or a link. A new version needs
    a larger number, or Triton would not take it for the latest.
    """
    digits = _VERSION.match(name)
    number = int(digits[0]) if digits else 0
    return number if number <= LARGEST_VERSION else 0


def ends_triton(name: str) -> bool:
    """Return True for a name that crashes Triton: one with a number that is too large for it."""
    digits = _READ_AS_NUMBER.match(name)
    return digits is not None and int(digits[1]) > LARGEST_VERSION


def _has_file(entry: os.DirEntry[str], name: str) -> bool:
    try:
        return Path(entry.path, name).is_file()
    except PermissionError:  # another user's folder
        return False
