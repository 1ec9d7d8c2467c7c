"""Check settings: list all faults at once, then do a dry run.

Every top-level key is parsed by itself, and a key that is wrong is divided: each of its keys, arguments and list
elements is added to those that are right already. Model, data module and Trainer are then created from the rest.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from unitrain.class_paths import import_class
from unitrain.errors import SettingsError, UnitrainError
from unitrain.repository import check_model_name
from unitrain.runs import check_experiment
from unitrain.training.console import quiet_lightning
from unitrain.training.loggers import check_trainer
from unitrain.training.parsing.dry_run import Step, dry_run
from unitrain.training.parsing.settings_errors import MissingSettingError, explained, own_error
from unitrain.training.parsing.settings_file import CLASS_SECTIONS, Flag, RawSettings, dump_settings
from unitrain.training.parsing.settings_parser import (
    ParsedSettings,
    SettingsCLI,
    class_error,
    key_error,
    known_settings,
    links_of,
    load_settings,
)

STAND_IN = {"class_path": "pytorch_lightning.demos.boring_classes.BoringModel"}
"""Model beside which other sections are parsed."""
_DROPPED = object()
"""Value of which no part is right."""


@dataclass(frozen=True)
class CheckReport:
    """Faults of settings, and the dry run of settings without faults.

    Attributes:
        settings: settings file.
        faults: faults of the settings, a sentence each.
        steps: steps of the dry run; empty if there are faults.
    """

    settings: Path
    faults: Sequence[str]
    steps: Sequence[Step]

    @property
    def good(self) -> bool:
        """True if a training by these settings would start and get through its first batches."""
        return not self.faults and all(step.passed for step in self.steps)


def check(path: Path, flags: Sequence[str] = (), *, over: Sequence[Path] = ()) -> CheckReport:
    """Return all faults of a settings file; without faults, the steps of a dry run.

    Args:
        path: settings file.
        flags: settings that override those of the file, as flags.
        over: further settings files; a later one overrides an earlier one.

    Raises:
        SettingsError: the file is missing, or no YAML.
    """
    raw = RawSettings.read([path, *over], flags)
    with quiet_lightning(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults, parsed = find_faults(raw)
        return CheckReport(path, tuple(faults), tuple(dry_run(parsed)) if parsed and not faults else ())


def find_faults(raw: RawSettings) -> tuple[list[str], ParsedSettings | None]:
    """Return all faults of settings, a sentence each, and the parsed settings if they could be parsed."""
    try:
        parsed = load_settings(raw)
        parsed.check_training()
        _create_trainer(parsed.trainer_args)
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        first = _sentence(error)
    else:
        return _client_faults(parsed.section("client_io"), raw.root), parsed
    # Outside of the handler, where the error would be the context of all further ones.
    return list(dict.fromkeys(_Search(raw).faults() or [first])), None


@dataclass
class _Search:
    """Search for the faults of settings that can't be loaded.

    Attributes:
        raw: the settings.
        found: faults so far.
        valid: sections without their faults.
        flags: flags without faults.
    """

    raw: RawSettings
    found: list[str] = field(default_factory=list)
    valid: dict[str, Any] = field(default_factory=dict)
    flags: list[Flag] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return the faults, a sentence each."""
        root, content = self.raw.root, self.raw.content
        if (error := key_error(content)) is not None:
            self.found.append(str(error))
        wrong = {name: error for name in CLASS_SECTIONS if (error := class_error(self.raw, name, root))}
        self.found += map(str, wrong.values())
        self._cli = SettingsCLI(RawSettings({"model": STAND_IN}), instantiate=False)
        keys = [key for key in content if key not in wrong and key != "links"]
        for key in keys:
            part, found = _valid_part(content[key], functools.partial(self._fault, key))
            self.found += found
            if part is not _DROPPED:
                self.valid[key] = part
        for flag in self.raw.flags:
            self._add_flag(flag, wrong)
        data = None if "data" in wrong else self._create_data()
        self._check_links(data)
        if "model" not in wrong:
            self._create_model(with_data="data" not in wrong)
        self._check_rest()
        return self.found

    def _add_flag(self, flag: Flag, wrong: Mapping[str, Any]) -> None:
        """Keep a flag that is right with the flags before it."""
        key = flag[0][2:].partition(".")[0]
        if key in wrong:
            return
        fault = self._fault(key, self.valid.get(key, _DROPPED), [*self._flags_of(key), flag])
        if fault is None:
            self.flags.append(flag)
        else:
            self.found.append(fault)

    def _flags_of(self, key: str) -> list[Flag]:
        return [flag for flag in self.flags if flag[0][2:].partition(".")[0] == key]

    def _fault(self, key: str, value: Any, flags: Sequence[Flag] = ()) -> str | None:
        """Return the fault of one top-level key with this value; None if it is right, or only incomplete."""
        content = {"model": STAND_IN} | ({} if value is _DROPPED else {key: value})
        words = [word for flag in flags for word in flag]

        def parse() -> None:
            self._cli.parse_arguments(self._cli.parser, ["--config", dump_settings(content), *words])
            if key not in CLASS_SECTIONS:  # those may take long: they are created once
                self._cli.parser.instantiate_classes(self._cli.config)

        return _fault_of(parse)

    def _create_data(self) -> Any:
        """Return the data module of the valid settings; None if it fails or there is none."""
        if "data" not in self.valid and not self._flags_of("data"):
            return None
        return self._create({"model": STAND_IN, **self._section("data")}, self._flags_of("data"), "data")

    def _create_model(self, *, with_data: bool) -> None:
        links = {link.source: link.target for link in links_of(self.valid)}
        if links and not with_data:
            return  # its arguments can't be known
        flags = [*self._flags_of("model"), *(self._flags_of("data") if links else ())]
        content = self._section("model") | (self._section("data") | {"links": links} if links else {})
        self._create(content, flags, "model")

    def _create(self, content: dict[str, Any], flags: list[Flag], section: str) -> Any:
        created: list[Any] = []

        def create() -> None:
            cli = SettingsCLI(RawSettings(content, tuple(flags)))
            created.append(cli.datamodule if section == "data" else cli.model)

        known = any(fault.startswith(f"{section}.") for fault in self.found)
        fault = _fault_of(create, incomplete_is_fault=not known)
        if fault is not None:
            self.found.append(fault)
        return created[0] if created else None

    def _section(self, key: str) -> dict[str, Any]:
        return {key: self.valid[key]} if key in self.valid else {}

    def _check_links(self, data: Any) -> None:
        """Keep the links that are right."""
        given = self.raw.content.get("links")
        if given is not None and not isinstance(given, Mapping):
            self.found.append(f"links: expected a mapping, got {given}")
            return
        kept = {}
        for link in links_of(self.raw.content):
            wrong = link.form_error()
            if wrong is not None:
                self.found.append(str(wrong))
                continue
            target = link.target_error(self.raw.content)
            source = None if data is None else _fault_of(lambda link=link: link.read(data))  # type: ignore[misc]
            faults = [str(fault) for fault in (target, source) if fault is not None]
            self.found += faults
            if not faults and data is not None:
                kept[link.source] = link.target
        if kept:
            self.valid["links"] = kept

    def _check_rest(self) -> None:
        """Check the Trainer's arguments, the names and the client."""
        rest = {key: value for key, value in self.valid.items() if key not in (*CLASS_SECTIONS, "links")}
        flags = [
            flag for flag in self.flags if flag[0][2:].partition(".")[0] not in (*CLASS_SECTIONS, "links")
        ]
        raw = replace(self.raw, content=rest | {"model": STAND_IN}, flags=tuple(flags))
        try:
            parsed = load_settings(raw)
        except Exception:  # noqa: BLE001 - a fault that is known by now
            return
        publish = parsed.section("publish")
        checks: list[Callable[[], Any]] = [
            lambda: check_trainer(parsed.trainer_args),
            lambda: _create_trainer(parsed.trainer_args),
            lambda: check_experiment(parsed.experiment),
        ]
        self.found += filter(None, map(_fault_of, checks))
        if publish:
            name = _fault_of(lambda: check_model_name(parsed.model_name))
            self.found += [f"publish.model: {name}"] if name else []
        self.found += _client_faults(parsed.section("client_io"), raw.root)


def _valid_part(value: Any, fault_of: Callable[[Any], str | None]) -> tuple[Any, list[str]]:
    """Return the part of a value that is right, and the faults of the rest.

    Args:
        value: mapping, list or plain value.
        fault_of: returns the fault of another value at the same place, else None.
    """
    fault = fault_of(value)
    if fault is None:
        return value, []
    faults: list[str] = []
    kept: Any = {} if isinstance(value, Mapping) else []

    def with_item(key: Any, item: Any) -> Any:
        return kept | {key: item} if isinstance(kept, dict) else [*kept, item]

    for key, item in _items(value):
        part, found = _valid_part(item, lambda other, key=key: fault_of(with_item(key, other)))  # type: ignore[misc]
        faults += found
        if key == "class_path" and found:
            return _DROPPED, faults
        if part is not _DROPPED:
            kept = with_item(key, part)
    return kept if faults and kept else _DROPPED, faults or [fault]


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the items of a mapping, its class first, or the elements of a list."""
    if isinstance(value, Mapping):
        yield from sorted(value.items(), key=lambda item: item[0] != "class_path")
    elif isinstance(value, list):
        yield from enumerate(value)


def _fault_of(action: Callable[[], Any], *, incomplete_is_fault: bool = False) -> str | None:
    """Return the fault at which an action fails, as a sentence; None if there is none."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        missing = not isinstance(error, UnitrainError) and isinstance(
            explained(error, known_settings()), MissingSettingError
        )
        return None if missing and not incomplete_is_fault else _sentence(error)
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, UnitrainError):
        return str(error)
    sentence = str(explained(error, known_settings()))
    expected = isinstance(error, ArgumentError | MisconfigurationException | TypeError | ValueError)
    # All other errors were raised by the user's code.
    return sentence if expected or own_error(error) else f"{type(error).__name__}: {sentence}"


def _create_trainer(arguments: Mapping[str, Any]) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    try:
        Trainer(**{**arguments} | quiet | {"logger": False, "callbacks": []})
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise SettingsError(f"trainer: {' '.join(str(error).split())}") from error


def _client_faults(client: Any, root: Path) -> list[str]:
    """Return the faults of the section `client_io`, which `predict --config` reads."""
    if not isinstance(client, Mapping):
        return []
    from unitrain.client import ClientIO

    path = str(client.get("class_path"))
    try:
        kind = import_class(path, root)
    except SettingsError as error:
        return [f"client_io: {error}"]
    if not issubclass(kind, ClientIO):
        return [f"client_io: expected a unitrain.ClientIO, got {path}"]
    return []
