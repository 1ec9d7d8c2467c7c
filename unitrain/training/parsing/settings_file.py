"""Settings files: YAML that unitrain or a LightningCLI wrote, read as one mapping of sections."""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from unitrain.errors import SettingsError
from unitrain.module_aliases import with_canonical_names
from unitrain.settings_renames import deprecation_line, rename_flags, rename_settings
from unitrain.training.console import Console, process_rank

SUBCOMMANDS = ("fit", "validate", "test", "predict")
"""LightningCLI's, each of which may have a section of its own with all settings below it."""
RUN_ARGUMENTS = ("ckpt_path", "weights_only")
"""Keys of a saved LightningCLI config that are no settings of a training."""
CLASS_SECTIONS = ("model", "data")

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
    """The content of several settings files; what a later one says takes the place of an earlier one's.

    Mappings are merged at every depth. Lists are replaced. A class path that differs takes the place of the earlier
    class with its arguments.

    Raises:
        SettingsError: as `read_settings` says.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged = _merge(merged, read_settings(path))
    return merged


def config_word(path: Path | None, raw: Mapping[str, Any]) -> str:
    """The value of jsonargparse's `--config`: the file where it holds just this content, else the content.

    Relative paths in a file's arguments are relative to it, if their type says so.
    """
    return str(path) if path is not None and _load(path) == raw else dump_settings(raw)


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
