"""From a settings file and flags to a model, a data module and a trainer, by LightningCLI."""

import dataclasses
import difflib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml
from jsonargparse import set_dumper, set_parsing_settings
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from unitrain import settings as sections
from unitrain.class_paths import import_class
from unitrain.errors import SettingsError, UnitrainError
from unitrain.module_aliases import is_of_other_lightning
from unitrain.settings import SECTIONS
from unitrain.training.parsing.settings_errors import failed_init, trainer_settings
from unitrain.training.parsing.settings_file import (
    CLASS_SECTIONS,
    classless,
    dump_settings,
    read_settings,
    with_new_flags,
)

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
    pairs = with_new_flags(pairs)
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


__all__ = ["SECTIONS", "SettingsCLI", "check_classes", "known_settings", "read_settings"]

set_parsing_settings(docstring_parse_attribute_docstrings=True)
set_dumper(
    "yaml", dump_settings
)  # jsonargparse's own stumbles over an enum's member, as Timer has one for a default

TrainerOf = Callable[["SettingsCLI", dict[str, Any]], Trainer]


class SettingsCLI(LightningCLI):
    """LightningCLI with unitrain's sections beside Lightning's own.

    Args:
        argv: as on the command line, `--config` among them.
        raw: the settings file's content, read beforehand: links must be known before parsing.
        make_trainer: called with this object and the trainer's arguments, once model and data are there.
    """

    def __init__(self, argv: Sequence[str], raw: Mapping[str, Any], make_trainer: TrainerOf) -> None:
        self._raw = raw
        self._make_trainer = make_trainer
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*configure_optimizers` will be overridden", UserWarning)
            super().__init__(
                args=list(argv),
                run=False,
                save_config_callback=None,
                seed_everything_default=42,
                trainer_defaults={"deterministic": "warn"},
                parser_kwargs={
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    "prog": "python -m unitrain fit",
                },
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str | None, default=None, help="Its name; default: the settings' folder's."
        )
        parser.add_argument(
            "--experiments_dir", type=str, default="experiments", help="Folder of the runs, by experiment."
        )
        parser.add_argument(
            "--step_seeding",
            type=bool,
            default=True,
            help="Seed every step by seed, epoch and batch, so that a resumed run draws the same random numbers.",
        )
        parser.add_argument(
            "--links",
            type=dict[str, str],
            default={},
            help="Properties of the data module that are arguments of the model: {data.NAME: model.init_args.NAME}.",
        )
        for name, kind in SECTIONS.items():
            default = None if kind is sections.ClientIO else kind()
            allowed = kind if kind is sections.Monitor else kind | None
            if kind is sections.ClientIO:
                # To jsonargparse a mapping with a class_path is a subclass of the type, never the type itself.
                allowed = dict[str, Any] | None
            summary = (kind.__doc__ or "").strip().splitlines()[0]
            parser.add_argument(f"--{name}", type=allowed, default=default, help=summary)
        for source, target in (self._raw.get("links") or {}).items():
            _add_link(parser, str(source), str(target), self._raw)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; `args` is all there is, whatever sys.argv holds."""
        self.config = parser.parse_args(args)
        unknown = set(self.config.client_io or ()) - {f.name for f in dataclasses.fields(sections.ClientIO)}
        if unknown:
            raise SettingsError(
                f"client_io: there is no setting `client_io.{min(unknown)}`; it has class_path and init_args"
            )

    def instantiate_classes(self) -> None:
        """Make model, data module and trainer; an error of a class's own `__init__` names section, class and line."""
        try:
            super().instantiate_classes()
        except UnitrainError:
            raise
        except Exception as error:
            where = failed_init(error, {name: self.config.get(name) for name in CLASS_SECTIONS})
            if where is None:
                raise
            raise SettingsError(where) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return self._make_trainer(self, {**self._get(self.config_init, "trainer", default={}), **kwargs})

    def section(self, name: str) -> Any:
        """A section of the settings, as its dataclass; None where it is off."""
        return self.config_init.get(name)

    def resolved(self) -> str:
        """The settings as YAML that reruns them: every default written out, links' targets left out."""
        text: str = self.parser.dump(self.config, skip_link_targets=True, skip_none=False, format="yaml")
        return text


def check_classes(raw: Mapping[str, Any], argv: Sequence[str], root: Path) -> None:
    """Import the model's and the data module's class, for an error that names what is missing.

    Args:
        raw: the settings file's content.
        argv: flags, which come before it.
        root: the project root.

    Raises:
        SettingsError: a class path is wrong, or its module fails to import.
    """
    trainer = raw.get("trainer")
    if trainer is not None and not isinstance(trainer, Mapping):  # jsonargparse says nothing of it
        raise SettingsError(f"trainer: expected a mapping of its arguments, got {trainer}")
    top = {name.partition(".")[0] for name in known_settings()}
    for key, value in raw.items():
        if key not in top and not value:  # jsonargparse says nothing of an empty section
            near = difflib.get_close_matches(str(key), top, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "`fit --help` lists them all"
            raise SettingsError(f"there is no setting `{key}`; {hint}")
    for section in CLASS_SECTIONS:
        _check_class(section, raw, argv, root)


def _check_class(section: str, raw: Mapping[str, Any], argv: Sequence[str], root: Path) -> None:
    value = raw.get(section)
    class_path = value.get("class_path") if isinstance(value, Mapping) else value
    for name, flag in zip(argv[::2], argv[1::2], strict=False):
        if name in (f"--{section}", f"--{section}.class_path"):
            class_path = flag
    if class_path is None and classless(raw, section):
        raise SettingsError(
            f"{section}: the section names no class, as in a config of LightningCLI(Model, Data); write its class as "
            f"`class_path` and its keys below `init_args`, or add --{section}.class_path PACKAGE.CLASS"
        )
    if not isinstance(class_path, str) or "." not in class_path:
        return  # a class that is already imported: LightningCLI knows it by its name
    try:
        kind = import_class(class_path, root, functions=True)
    except SettingsError as error:
        raise SettingsError(f"{section}: {error}") from error
    if isinstance(kind, type) and is_of_other_lightning(kind):
        raise SettingsError(
            f"{section}: {class_path} is of a second copy of Lightning, since `lightning` and `pytorch_lightning` "
            "were both imported before unitrain; import unitrain before them"
        )


def known_settings() -> list[str]:
    """Every setting by its dotted name, but for those of a person's own classes."""
    top = ["experiment", "experiments_dir", "seed_everything", "step_seeding", "trainer", "model", "data", "links", "optimizer",
           "lr_scheduler", *SECTIONS]  # fmt: skip
    inner = [full for name, kind in SECTIONS.items() for full in sections.setting_names(name, kind)]
    return top + inner + trainer_settings()


def _add_link(parser: LightningArgumentParser, source: str, target: str, raw: Mapping[str, Any]) -> None:
    """Give the model a property of the data module; every mistake is refused: jsonargparse says nothing of them."""
    where = f"links: {source}: {target}"
    owner, _, attribute = source.partition(".")
    if owner != "data" or not attribute:
        raise SettingsError(f"{where}: a link starts at `data.NAME`, a property of the data module")
    section, _, argument = target.partition(".init_args.")
    if section != "model" or not argument.isidentifier():
        raise SettingsError(
            f"{where}: a link ends at `model.init_args.NAME`, an argument of the model's __init__"
        )
    model = raw.get("model")
    if isinstance(model, Mapping):
        if argument in (model.get("init_args") or {}):
            raise SettingsError(f"{where}: the settings also give {target} a value; remove one of the two")
        _check_argument(where, str(model.get("class_path")), argument)

    def read(data: Any) -> Any:
        value = data
        for part in attribute.split("."):
            if not hasattr(value, part):
                names = [n for n in dir(data) if not n.startswith("_")]
                near = difflib.get_close_matches(part, names, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise SettingsError(f"{where}: {type(data).__name__} has no {part} after its __init__{hint}")
            value = getattr(value, part)
        return value

    parser.link_arguments("data", target, compute_fn=read, apply_on="instantiate")


def _check_argument(where: str, class_path: str, argument: str) -> None:
    module_name, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module_name), name, None)
    if kind is None:
        return
    parameters = inspect.signature(kind).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if argument not in parameters and not open_ended:
        near = difflib.get_close_matches(argument, parameters, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(parameters) or 'none'}"
        raise SettingsError(f"{where}: {name} has no argument {argument}; {hint}")
