"""The flags of `fit`: any setting by its dotted name."""

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import yaml

from unitrain.errors import SettingsError

PATH_FLAGS = ("experiments_dir", "publish.repository")
"""On a command line they are relative to the working folder, in a settings file to the project root."""


def absolute(argv: Sequence[str]) -> list[list[str]]:
    """The flags as pairs of one or two words, with paths made absolute and hyphens in names as underscores."""
    pairs: list[list[str]] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            pairs.append(
                [f"--{name.replace('-', '_')}", value] if equals else [f"--{name.replace('-', '_')}"]
            )
        elif pairs and len(pairs[-1]) == 1:
            pairs[-1].append(word)
        else:
            raise SettingsError(f"fit: `{word}` follows no option; settings are given as --name value")
    for pair in pairs:
        if pair[0][2:] in PATH_FLAGS and len(pair) > 1:
            pair[1] = os.path.abspath(pair[1])  # noqa: PTH100 - keeps links
    return pairs


def slug(argv: Sequence[str]) -> str:
    """What differs from the settings file, for the run folder's name: `hidden=32_lr=0.01`."""
    parts = [
        f"{name.rpartition('.')[2]}={value}"
        for name, value in zip(argv[::2], argv[1::2], strict=False)
        if name[2:].startswith(("model.", "data.", "optimizer", "lr_scheduler", "ema", "seed_everything"))
    ]
    return "_".join(parts)[:60]


def as_flags(overrides: Mapping[str, Any]) -> list[str]:
    """Settings by dotted name, as the command line has them."""
    flags = []
    for name, value in overrides.items():
        text = "null" if value is None else yaml.safe_dump(plain(value), default_flow_style=True).strip()
        flags += [f"--{name}", text.removesuffix("\n...").strip()]
    return flags


def plain(value: Any) -> Any:
    """Settings as YAML has them: numpy's numbers, which searches draw, and paths become Python's own and texts."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value
