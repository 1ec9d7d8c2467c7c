"""All that is wrong with the settings at once: each fault is noted and mended, and the rest is looked at again.

jsonargparse stops at the first fault. So what the first one names is taken out of the settings (a model or a
data module that can't be had is replaced by an empty one), and they are parsed again, until nothing is wrong.
"""

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer

from unitrain.class_paths import import_class, project_root
from unitrain.errors import SettingsError, UnitrainError, UsageError
from unitrain.repository import check_model_name
from unitrain.runs import check_experiment
from unitrain.training.console import quiet_lightning
from unitrain.training.loggers import check_trainer
from unitrain.training.parsing.dry_run import Step, dry_run
from unitrain.training.parsing.settings_errors import explained, own_error
from unitrain.training.parsing.settings_file import config_word, read_merged, with_class_flags
from unitrain.training.parsing.settings_parser import SettingsCLI, absolute, check_classes, known_settings

MOST_TRIES = 100
"""Parses in all, a fifth of a second each: no settings file is searched for ever."""
STAND_INS = {
    "model": "pytorch_lightning.demos.boring_classes.BoringModel",
    "data": "pytorch_lightning.demos.boring_classes.BoringDataModule",
}
_WORD = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")
_HINT = re.compile(r"; (?:did you mean|it takes|it has|it logs|there is|`fit --help`)")


@dataclass
class Draft:
    """Settings on their way to being right: a file's content and flags, both ours to change.

    Attributes:
        raw: the file's content.
        flags: as pairs of one or two words, names with two hyphens.
        root: the project root.
        path: the settings file, whose folder names the experiment where the settings do not.
    """

    raw: dict[str, Any]
    flags: list[list[str]]
    root: Path
    path: Path
    replaced: set[str] = field(default_factory=set)

    def parse(self) -> SettingsCLI:
        """Model, data module and trainer of these settings; no folder is made.

        Raises:
            UnitrainError: the first fault.
        """
        words = [word for pair in self.flags for word in pair]
        check_classes(self.raw, words, self.root)
        arguments = ["--config", config_word(self.path, self.raw), *words]
        try:
            _ParseOnly(arguments, self.raw, self._trainer)
        except _Parsed:
            pass
        except Exception as error:
            raise _told(error) from error
        try:
            return SettingsCLI(arguments, self.raw, self._trainer)
        except Exception as error:
            raise _told(error) from error

    def repaired(self, fault: str) -> Iterator["Draft"]:
        """Drafts without what the fault names, the most likely one first."""
        words = _WORD.findall(_HINT.split(fault)[0])
        pairs = (f"{a}.{b}" for a in ("trainer", *words) for b in words if a != b)
        names = dict.fromkeys([*words, *pairs])
        for name in sorted(names, key=lambda name: -name.count(".")):
            yield from self._without(name)
        for name in names:  # a fault inside a list: in one of its elements
            yield from self._without_elements(name.removesuffix(".init_args"))
        for section in STAND_INS:  # whatever it was, it may come from the class itself
            if section not in self.replaced:
                yield self._replacing(section)

    def _without(self, name: str) -> Iterator["Draft"]:
        if name in STAND_INS:
            if name not in self.replaced:
                yield self._replacing(name)
            return
        prefix = f"--{name}."
        if any(pair[0] == f"--{name}" or pair[0].startswith(prefix) for pair in self.flags):
            draft = copy.deepcopy(self)
            draft.flags = [p for p in self.flags if p[0] != f"--{name}" and not p[0].startswith(prefix)]
            yield draft
        draft = copy.deepcopy(self)
        if _remove(draft.raw, name) or _remove(draft.raw.get("links"), name):
            yield draft

    def _without_elements(self, name: str) -> Iterator["Draft"]:
        while "." in name and not isinstance(_value(self.raw, name), list):
            name = name.rpartition(".")[0]
        elements = _value(self.raw, name)
        for index in range(len(elements) if isinstance(elements, list) else 0):
            draft = copy.deepcopy(self)
            del _value(draft.raw, name)[index]
            yield draft
        yield from self._without(name)

    def _replacing(self, section: str) -> "Draft":
        draft = copy.deepcopy(self)
        draft.raw[section] = {"class_path": STAND_INS[section]}
        draft.raw.pop("links", None)
        draft.flags = [p for p in self.flags if p[0].split(".")[0] not in (f"--{section}", "--links")]
        draft.replaced.add(section)
        return draft

    def _trainer(self, cli: SettingsCLI, arguments: dict[str, Any]) -> Trainer:
        check_trainer(arguments)
        experiment = check_experiment(cli.config.experiment or self.path.absolute().parent.name)
        publish = cli.section("publish")
        if publish:
            try:
                check_model_name(publish.model or experiment)
            except UsageError as error:
                raise SettingsError(f"publish.model: {error}") from error
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        try:
            return Trainer(**arguments | quiet | {"logger": False, "callbacks": []})
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise SettingsError(f"trainer: {' '.join(str(error).split())}") from error


def faults_of(draft: Draft) -> list[str]:
    """Everything that is wrong, a sentence each; none where the settings are right."""
    found: list[str] = []
    tries = 0
    fault, parsed = _outcome(draft)
    while fault is not None:
        found.append(fault)
        for repaired in draft.repaired(fault):
            tries += 1
            following, parsed = _outcome(repaired)
            if following != fault:
                draft, fault = repaired, following
                break
            if tries >= MOST_TRIES:
                return [*found, "there may be more: the search for them was given up"]
        else:
            return [*found, "there may be more: they can't be looked for before this one is mended"]
    client_io = parsed.config.client_io if parsed else None
    return [*dict.fromkeys(found), *_client_faults(client_io, draft.root)]


def _outcome(draft: Draft) -> tuple[str | None, SettingsCLI | None]:
    """The first fault, or the settings parsed."""
    try:
        return None, draft.parse()
    except UnitrainError as error:
        return str(error), None


def _client_faults(client: Any, root: Path) -> list[str]:
    """What `predict --config` would say of the settings' client_io."""
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


def _told(error: Exception) -> UnitrainError:
    if isinstance(error, UnitrainError):
        return error
    told = explained(error, known_settings())
    expected = isinstance(error, ArgumentError | MisconfigurationException | TypeError | ValueError)
    # What else there is was raised by a person's class.
    return told if expected or own_error(error) else SettingsError(f"{type(error).__name__}: {told}")


def _value(mapping: Any, name: str) -> Any:
    """What stands under a dotted name; None where nothing does."""
    for part in name.split("."):
        mapping = mapping.get(part) if isinstance(mapping, dict) else None
    return mapping


def _remove(mapping: Any, name: str) -> bool:
    """Take a dotted name out of a mapping of mappings; whether it was there. A link's name has dots itself."""
    if not isinstance(mapping, dict):
        return False
    if name in mapping:
        del mapping[name]
        return True
    parts = name.split(".")
    for head in (".".join(parts[:i]) for i in range(1, len(parts))):
        if _remove(mapping.get(head), name[len(head) + 1 :]):
            if not mapping[head]:
                del mapping[head]
            return True
    return False


class _Parsed(Exception):  # noqa: N818 - the way out of a constructor that would go on
    """The settings are parsed."""


class _ParseOnly(SettingsCLI):
    """Ends before the person's classes are made: that may take long, and is done once all else is right."""

    def before_instantiate_classes(self) -> None:
        raise _Parsed


def draft_of(raw: Mapping[str, Any], flags: Sequence[list[str]], root: Path, path: Path) -> Draft:
    """A draft of its own: the settings given stay as they are."""
    return Draft(copy.deepcopy(dict(raw)), copy.deepcopy(list(flags)), root, path)


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with the settings, and what came of trying them.

    Attributes:
        settings: the file.
        faults: of the settings themselves, a sentence each.
        steps: of the dry run; none where there are faults.
    """

    settings: Path
    faults: Sequence[str]
    steps: Sequence[Step]

    @property
    def good(self) -> bool:
        """Whether a training by these settings would begin, and come through its first batches."""
        return not self.faults and all(step.passed for step in self.steps)


def check(path: Path, flags: Sequence[str] = (), *, over: Sequence[Path] = ()) -> CheckReport:
    """Everything that is wrong with a settings file, and, if nothing is, what a dry run of it met.

    Args:
        path: the settings file.
        flags: settings that take the place of its own, as flags.
        over: further settings files, of which a later one overrides what an earlier one says.

    Raises:
        SettingsError: the file is missing, or no YAML.
    """
    root = project_root(path.absolute().parent)
    pairs = absolute(flags)
    raw = with_class_flags(read_merged([path, *over]), pairs)
    folder = path.absolute().parent.name
    with quiet_lightning(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        faults = faults_of(draft_of(raw, pairs, root, path))
        if faults:
            return CheckReport(path, tuple(faults), ())
        words = ["--config", config_word(path, raw), *(word for pair in pairs for word in pair)]
        return CheckReport(path, (), tuple(dry_run(words, raw, root=root, experiment=folder)))
