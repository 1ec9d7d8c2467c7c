"""Settings before parsing: files that unitrain or LightningCLI wrote, and flags, as one mapping of sections."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from unitrain.class_paths import project_root
from unitrain.errors import SettingsError
from unitrain.import_aliases import with_canonical_names
from unitrain.settings_renames import deprecation_line, rename_flags, rename_settings
from unitrain.training.console import Console, process_rank

SUBCOMMANDS = ("fit", "validate", "test", "predict")
"""Subcommands of LightningCLI; each may be a section that has all settings below it."""
RUN_ARGUMENTS = ("ckpt_path", "weights_only")
"""Keys of a saved LightningCLI config that are not settings of a training."""
CLASS_SECTIONS = ("model", "data")
"""Sections that name a class and its arguments."""
PATH_FLAGS = ("--experiments_dir", "--publish.repository")
"""Flags with a path: relative to the working folder, while in a settings file it is relative to the project root."""

Flag = list[str]
"""Name with two hyphens, and its value; a switch has no value."""

_FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which of a key that stands twice would silently take the last."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node] | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                text = f"`{key.value}` stands twice in one mapping, expected once; remove one of the two"
                raise yaml.composer.ComposerError(None, None, text, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return node


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, without anchors: a list that is used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind in (_Loader, _Dumper):  # YAML 1.1 takes 1e-3 for a text, jsonargparse for a number
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))

_Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


@dataclass(frozen=True)
class RawSettings:
    """Settings before parsing: content of settings files or of a mapping, and flags that override it.

    Attributes:
        content: sections by name, in unitrain's layout.
        flags: flags, which override the content.
        paths: settings files that the content was merged from; empty if it came from Python.
    """

    content: dict[str, Any]
    flags: tuple[Flag, ...] = ()
    paths: tuple[Path, ...] = ()

    @classmethod
    def read(
        cls, source: str | Path | Mapping[str, Any] | Sequence[Path], argv: Sequence[str] = ()
    ) -> "RawSettings":
        """Read settings files, or take a mapping from Python.

        Args:
            source: settings file, several of which a later one overrides an earlier one, or their content.
            argv: further settings as flags: `["--trainer.max_epochs", "3"]`.

        Raises:
            SettingsError: a file is missing or no settings file, or a flag has no name.
        """
        flags = read_flags(argv)
        if isinstance(source, Mapping):
            content = with_new_names(plain(source), "settings")
            return cls(with_class_flags(content, flags), tuple(flags))
        paths = (Path(source),) if isinstance(source, str | Path) else tuple(source)
        return cls(with_class_flags(read_merged(paths), flags), tuple(flags), paths)

    @property
    def root(self) -> Path:
        """Root of the project that the first settings file belongs to, or that the working folder is in."""
        return project_root(self.paths[0].absolute().parent if self.paths else Path.cwd())

    @property
    def experiment(self) -> str:
        """Name of the experiment: the setting, else the name of the settings file's folder."""
        given = self._flag("--experiment") or self.content.get("experiment")
        return str(given or (self.paths[0].absolute().parent.name if self.paths else "experiment"))

    @property
    def experiments_dir(self) -> Path:
        """Folder of the experiments, absolute."""
        given = self._flag("--experiments_dir") or self.content.get("experiments_dir")
        return self.root / str(given or "experiments")

    @property
    def words(self) -> list[str]:
        """Flags as words of a command line; `--print_config` takes its value after `=` only."""
        return [
            word
            for flag in self.flags
            for word in (["=".join(flag)] if flag[0] == "--print_config" else flag)
        ]

    @property
    def argv(self) -> list[str]:
        """Command line of jsonargparse for these settings."""
        return ["--config", self._config_word(), *self.words]

    @property
    def command(self) -> list[str]:
        """Flags of `fit` that repeat the training, after `--config` with the first file."""
        return [*(word for path in self.paths[1:] for word in ("--config", str(path))), *self.words]

    def _flag(self, name: str) -> str | None:
        return next((flag[1] for flag in reversed(self.flags) if flag[0] == name and len(flag) > 1), None)

    def _config_word(self) -> str:
        """Return the file if it has this content, else the content: types may resolve paths relative to the file."""
        if len(self.paths) == 1 and _load(self.paths[0]) == self.content:
            return str(self.paths[0])
        return dump_settings(self.content)


def read_flags(argv: Sequence[str]) -> list[Flag]:
    """Return the words of a command line as flags, with absolute paths and underscores in names.

    Raises:
        SettingsError: a word follows no flag.
    """
    flags: list[Flag] = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flags.append([f"--{name[2:].replace('-', '_')}", *([value] if equals else [])])
        elif flags and len(flags[-1]) == 1:
            flags[-1].append(word)
        else:
            raise SettingsError(f"fit: `{word}` follows no option; settings are given as --name value")
    flags = with_new_flags(flags)
    for flag in flags:
        if flag[0] in PATH_FLAGS and len(flag) > 1:
            flag[1] = os.path.abspath(flag[1])  # noqa: PTH100 - keeps links
    return flags


def as_flags(overrides: Mapping[str, Any]) -> list[str]:
    """Return settings by dotted name as words of a command line."""
    words = []
    for name, value in overrides.items():
        text = "null" if value is None else yaml.safe_dump(plain(value), default_flow_style=True).strip()
        words += [f"--{name}", text.removesuffix("\n...").strip()]
    return words


def slug(argv: Sequence[str]) -> str:
    """Return the flags that change a result, for the name of the run folder: `hidden=32_lr=0.01`."""
    parts = [
        f"{name.rpartition('.')[2]}={value}"
        for name, value in zip(argv[::2], argv[1::2], strict=False)
        if name[2:].startswith(("model.", "data.", "optimizer", "lr_scheduler", "ema", "seed_everything"))
    ]
    return "_".join(parts)[:60]


def plain(value: Any) -> Any:
    """Return settings as YAML has them: numbers of numpy become Python's, and paths become strings."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value


def read_settings(path: Path) -> dict[str, Any]:
    """A settings file's content, in unitrain's layout whatever LightningCLI's was.

    Raises:
        SettingsError: it is missing, no YAML, no mapping, or a layout that names no training.
    """
    return with_new_names(_in_our_layout(_load(path), path), str(path))


def with_new_names(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return settings under their new names, with one deprecation line on the console.

    Raises:
        SettingsError: a setting is given under both names.
    """
    try:
        renamed, found = rename_settings(settings)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    _warn_of_renames(where, found)
    return renamed


def with_new_flags(pairs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return flags under the settings' new names, with one deprecation line on the console.

    Raises:
        SettingsError: a setting is given under both names.
    """
    renamed, found = rename_flags(pairs)
    _warn_of_renames("flags", found)
    return renamed


def read_merged(paths: Sequence[Path]) -> dict[str, Any]:
    """The content of several settings files; a later file overrides an earlier one.

    Mappings are merged at every depth. Lists are replaced. A class path that differs takes the place of the earlier
    class with its arguments.

    Raises:
        SettingsError: same errors as `read_settings`.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, read_settings(path))
    return merged


def dump_settings(raw: Mapping[str, Any]) -> str:
    """Return settings as YAML that reads back as the same values; class paths get their canonical names."""
    return yaml.dump(with_canonical_names(dict(raw)), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def with_class_flags(raw: Mapping[str, Any], pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Settings whose class-less `model` and `data` sections are the arguments of the class that a flag names.

    Args:
        raw: the settings.
        pairs: flags, of which `--model.class_path` and `--data.class_path` name the classes of such sections.
    """
    settled = dict(raw)
    for section in CLASS_SECTIONS:
        if (value := classless(settled, section)) is None:
            continue
        named = [p[1] for p in pairs if p[0] in (f"--{section}", f"--{section}.class_path") and len(p) > 1]
        if named:
            arguments = value.get("init_args") if set(value) == {"init_args"} else value
            settled[section] = {"class_path": named[-1], "init_args": arguments}
    return settled


def classless(raw: Mapping[str, Any], section: str) -> Mapping[str, Any] | None:
    """A section that has arguments and names no class, as in a config of `LightningCLI(Model, Data)`; else None."""
    value = raw.get(section)
    return value if isinstance(value, Mapping) and value and "class_path" not in value else None


_warned: set[str] = set()


def _warn_of_renames(where: str, found: Mapping[str, str]) -> None:
    """Print a deprecation line, once a process, in the main process only."""
    line = deprecation_line(where, found) if found else ""
    if line and line not in _warned and not process_rank():
        _warned.add(line)
        Console().warn(line)


def _load(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    except FileNotFoundError as error:
        raise SettingsError(f"--config: there is no file {path}{_near_file(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config: {path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: expected a mapping of sections, got {type(raw).__name__}")
    return raw


def _in_our_layout(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    found = [name for name in SUBCOMMANDS if isinstance(raw.get(name), Mapping)]
    if found and "fit" not in found:
        raise SettingsError(
            f"{path}: this is a LightningCLI config of the subcommand `{found[0]}`, and a training is made of its "
            "section `fit`; give the file that `fit --print_config` writes"
        )
    if found:
        dropped = (*SUBCOMMANDS, "config", "subcommand")
        outside = {key: value for key, value in raw.items() if key not in dropped}
        raw = _merge(outside, dict(raw["fit"]))
    if raw.get("ckpt_path") is not None:
        raise SettingsError(
            f"{path}: `ckpt_path` is LightningCLI's way to continue; remove it, and continue a run with --resume RUN or "
            "start from its weights with --init-from RUN"
        )
    return {key: value for key, value in raw.items() if key not in RUN_ARGUMENTS}


def _merge(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    if "class_path" in later and later["class_path"] != earlier.get("class_path", later["class_path"]):
        return dict(later)
    merged = dict(earlier)
    if "class_path" in later and earlier and not {"class_path", "init_args"} & set(earlier):
        merged = {"init_args": dict(earlier)}  # a class-less section, whose class the later file names
    for key, value in later.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _near_file(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path()
    found = sorted(str(p) for p in folder.glob("*.y*ml"))
    return f"; there is {', '.join(found[:3])}" if found else ""
