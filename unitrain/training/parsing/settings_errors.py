"""Translate errors of jsonargparse into one sentence."""

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import ArgumentError
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.loggers import Logger

from unitrain.errors import SettingsError, UnitrainError

_UNKNOWN = re.compile(
    r"(?:Key|Option|option) '([^']+)' is not (?:expected|accepted)"
    r"|does not accept option '([^']+)'"
    r"|[Uu]nrecognized arguments: (?:--)?([^\s=]+)"
)
_GROUP = re.compile(r"Group '([^']+)' does not accept option")
_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_TYPE = re.compile(r"Expected an? <class '([^']+)'>")
_GOT = re.compile(r"Got value: (.*)|Given value: (.*)")
_CHOICE = re.compile(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)")
_NO_CLASS = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_NO_PATH = re.compile(r"Expected a dot import path string: (\S+)")
_REQUIRED = re.compile(r"the following arguments are required: (\w+)")
_BULLET = re.compile(r"^\s*- (.+)$", re.MULTILINE)
_HOMES = {
    "optimizer": "torch.optim",
    "lr_scheduler": "torch.optim.lr_scheduler",
    "trainer": "pytorch_lightning.callbacks",
}
"""Modules of the usual classes, by section."""


class MissingSettingError(SettingsError):
    """A required setting is missing."""


def explained(error: Exception, known: Iterable[str]) -> SettingsError:
    """Translate an error of jsonargparse into one sentence: the setting, the expected value, the given one, a hint.

    Args:
        error: error of jsonargparse, or an error of unitrain that it has wrapped.
        known: all settings by their dotted names.
    """
    ours = own_error(error)
    if ours is not None:
        return SettingsError(str(ours))
    text = str(error) if isinstance(error, ArgumentError) else str(_chain(error)[-1])
    where = _where(text)
    required = _REQUIRED.search(text)
    if required:
        return MissingSettingError(_missing(where, required[1], text))
    named = _choice(where, text) or _class(where, text)
    if named:
        return SettingsError(named)
    unknown = _UNKNOWN.search(text)
    if unknown:
        return SettingsError(_unknown(next(filter(None, unknown.groups())), where, text, list(known)))
    kinds = list(dict.fromkeys(kind.rpartition(".")[2] for kind in _TYPE.findall(text)))
    # A section that may be null, with a fault inside: null is no useful alternative.
    if _CLASS.search(text):
        kinds = [kind for kind in kinds if kind != "NoneType"]
    got = _GOT.search(text)
    if where and kinds and got and not where.endswith(("model", "data")):
        if kinds == ["NoneType"]:  # the other type of a section is a mapping
            kinds = ["a mapping", *kinds]
        expected = " or ".join("null" if kind == "NoneType" else kind for kind in kinds)
        return SettingsError(f"{where}: expected {expected}, got {got[1] or got[2]}")
    bullets = [b for b in _BULLET.findall(text) if not _TYPE.match(b) and not b.startswith("Problem with")]
    sentence = (
        bullets[0] if bullets else next((line for line in text.splitlines() if line.strip()), "unknown fault")
    )
    sentence = " ".join(sentence.split())
    return SettingsError(f"{where}: {sentence}"[:500] if where and where not in sentence else sentence[:500])


def own_error(error: BaseException) -> UnitrainError | None:
    """Return the error of unitrain in a chain of errors; None if there is none."""
    return next((cause for cause in _chain(error) if isinstance(cause, UnitrainError)), None)


def failed_init(error: Exception, sections: Mapping[str, Any]) -> str | None:
    """Return a sentence for an error of the `__init__` of a class that the settings name; None for other errors.

    Args:
        error: error with its traceback.
        sections: parsed sections `model` and `data`.
    """
    for cause in _chain(error):
        frames = [(frame, line) for frame, line in traceback.walk_tb(cause.__traceback__)]
        for place, (frame, _) in enumerate(frames):
            found = _made(frame, sections)
            if found is None:
                continue
            file, line = frame.f_code.co_filename, 0
            for deeper, number in frames[place:]:
                if deeper.f_code.co_filename == file or _is_own(deeper):
                    file, line = deeper.f_code.co_filename, number
            text = " ".join(str(cause).split())[:300] or "no message"
            return f"{found} failed at {file}:{line} with {type(cause).__name__}: {text}"
    return None


def _made(frame: FrameType, sections: Mapping[str, Any]) -> str | None:
    """Return `section: Class.__init__` if a frame creates the object of a section, else None."""
    code, made = frame.f_code, frame.f_locals.get("self")
    kinds = {"model": LightningModule, "data": LightningDataModule, "trainer.callbacks": Callback,
             "trainer.logger": Logger}  # fmt: skip
    if code.co_name == "__init__":
        section = next((name for name, kind in kinds.items() if isinstance(made, kind)), None)
        return section and f"{section}: {type(made).__name__}.__init__"
    for section, value in sections.items():
        module, _, name = str(value and value.get("class_path")).rpartition(".")
        if name == code.co_name and f"{module}.".startswith(f"{frame.f_globals.get('__name__')}."):
            return f"{section}: {name}"
    return None


def _is_own(frame: FrameType) -> bool:
    """Return whether a frame belongs to code outside of installed packages."""
    return not {"site-packages", "dist-packages"} & set(Path(frame.f_code.co_filename).parts)


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    return chain


def _where(text: str) -> str:
    """Return the dotted name of the setting, which jsonargparse prints level by level."""
    where = ""
    for match in re.finditer(f"{_KEY.pattern}|{_CLASS.pattern}|{_GROUP.pattern}", text):
        key, class_path, group = match.groups()
        if class_path:
            where += "" if class_path.startswith("unitrain.settings.") else ".init_args"
        else:
            where = f"{where}.{key or group}".lstrip(".")
    return where


def _choice(where: str, text: str) -> str | None:
    """Return a sentence for a value that is not among the choices, else None."""
    found = _CHOICE.search(text)
    if not found:
        return None
    choices = re.findall(r"'([^']*)'", found[1])
    near = difflib.get_close_matches(found[2], choices, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"{where}: expected {' or '.join(choices) or found[1]}, got {found[2]}{hint}"


def _class(where: str, text: str) -> str | None:
    """Return a sentence for a class path without a class, else None."""
    given = _CLASS.findall(text)
    missing = _NO_CLASS.search(text)
    section = where.removesuffix(".init_args")
    if given and missing and given[-1].endswith(f".{missing[2]}"):
        return (
            f"{section}: there is no class {missing[2]} in {missing[1]}{_near_class(missing[2], missing[1])}"
        )
    bare = _NO_PATH.search(text)
    home = _HOMES.get(section.partition(".")[0])
    if bare is None or home is None or given:
        return None
    hint = _near_class(bare[1].rpartition(".")[2], home)
    return f"{section}: expected a class path, got {bare[1]}{hint}"


def _missing(where: str, argument: str, text: str) -> str:
    """Return the sentence for a required setting that is missing."""
    classes = [path for path in _CLASS.findall(text) if not path.startswith("unitrain.settings.")]
    if classes:
        owner = classes[-1].rpartition(".")[2]
        return f"{where}: {owner} requires its argument `{argument}`; give it a value"
    return f"the settings have no {f'{where}.' * bool(where)}{argument}, which is required; add it"


def _near_class(name: str, module: str) -> str:
    names = [n for n, value in vars(import_module(module)).items() if isinstance(value, type)]
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean `{module}.{near[0]}`?" if near else ""


def _unknown(name: str, where: str, text: str, known: Sequence[str]) -> str:
    classes = [c for c in _CLASS.findall(text) if not c.startswith("unitrain.settings.")]
    if classes:
        module, _, kind = classes[-1].rpartition(".")
        found = getattr(sys.modules.get(module), kind, None)
        names = [n for n in inspect.signature(found).parameters if n != "self"] if found else []
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"it takes {', '.join(names) or 'none'}"
        return f"{where}: {kind} has no argument `{name}`; {hint}"
    full = f"{where}.{name}" if where and not name.startswith(where) else name
    near = difflib.get_close_matches(full, known, n=1) or difflib.get_close_matches(
        name, [k for k in known if "." not in k], n=1
    )
    if not near and "." in full:
        section = full.partition(".")[0]
        near = difflib.get_close_matches(section, [k for k in known if "." not in k], n=1)
    return f"there is no setting `{full}`; " + (
        f"did you mean `{near[0]}`?" if near else "`fit --help` lists them all"
    )


def trainer_settings() -> list[str]:
    """Return the arguments of the Trainer by their dotted names."""
    return [f"trainer.{argument}" for argument in inspect.signature(Trainer).parameters]
