"""Command `models`: list, show, compare, verify, repeat, promote and remove versions."""

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unitrain.commands._parser import ArgumentParser, add_experiments_dir, parse
from unitrain.errors import RepositoryError, UsageError

_COLUMNS = ("model", "version", "when", "run", "step", "metric", "weights", "parity", "size")
_RIGHT = ("version", "step", "parity", "size")


@dataclass(frozen=True)
class _Version:
    model: str
    version: int
    path: Path
    published_at: datetime
    size_bytes: int
    manifest: Any  # unitrain.repository.manifest.Manifest | None
    unreadable: str | None
    mark: Any = None  # unitrain.repository.ranking.Mark | None

    @property
    def parity(self) -> float | None:
        """Largest absolute difference of onnxruntime from torch, over all outputs."""
        errors = (self.manifest.parity if self.manifest else {}).values()
        found = [
            value
            for output in errors
            for key, value in output.items()
            if key == "max_abs" and value is not None
        ]
        return max(found, default=None)


_ACTIONS = {
    "": ("", "list all versions"),
    "show": ("[show] NAME [VERSION]", "show a version's manifest (default: the newest version)"),
    "diff": ("diff NAME A B", "compare settings, metrics and weights of two versions"),
    "verify": ("verify [NAME [VERSION]]", "check hashes, graph and golden samples"),
    "rollback": ("rollback NAME VERSION", "publish an earlier version again under a new number"),
    "promote": ("promote NAME --run RUN", "publish the version that a run holds back"),
    "prune": ("prune [NAME]", "remove old versions"),
}
"""Form and description by action."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description, and print defaults other than None, False and empty ones."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = action.default is None or action.default is False or action.default == []
        return action.help if no_default else super()._get_help_string(action)


def _parser() -> ArgumentParser:
    forms = {form or "(nothing)": text for form, text in _ACTIONS.values()}
    actions = "\n".join(f"  {form:24} {text}" for form, text in forms.items())
    parser = ArgumentParser(
        "models",
        f"List the versions in a model repository, or act on them.\n\nactions:\n{actions}",
        usage="python -m unitrain models [ACTION] [NAME] [VERSION] [options]",
    )
    parser.formatter_class = _HelpFormatter
    parser.add_argument(
        "words", nargs="*", metavar="ACTION NAME VERSION", help="one of the actions above", default=[]
    )
    parser.add_argument(
        "--model-repository", type=Path, default=Path("triton_repo"), metavar="DIR", help="model repository"
    )
    parser.add_argument(
        "--url",
        metavar="HOST:PORT",
        help="Triton server: the list shows what it serves, and verify queries it with the golden samples",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=5,
        metavar="N",
        help="prune: minimum number of versions that stay, by model",
    )
    parser.add_argument(
        "--run", metavar="RUN", help="promote: folder of a run, its name or the beginning of it, or `last`"
    )
    add_experiments_dir(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    from unitrain.commands import _model_actions as versions
    from unitrain.repository import Repository

    options = parse(_parser(), argv)
    repository = Repository(options.model_repository)
    match options.words:
        case []:
            return _list(repository, options.url, as_json=options.json)
        case ["diff", name, first, second]:
            a, b = (chosen(repository, name, number) for number in (first, second))
            return versions.diff(repository, name, a, b, as_json=options.json)
        case ["verify", *names] if len(names) <= 2:  # noqa: PLR2004 - a name and a version
            pairs = _pairs(repository, names)
            return versions.verify(repository, pairs, options.url, as_json=options.json)
        case ["rollback", _, _] | ["promote", _]:
            return _publish_again(repository, options)
        case ["prune", *names] if len(names) <= 1:
            names = [n for n in names if chosen(repository, n, None)] or repository.models()
            return versions.prune(repository, names, options.keep, as_json=options.json)
        case ["diff" | "verify" | "rollback" | "promote" | "prune" as action, *_]:
            raise UsageError(
                f"models {action}: expected `{_ACTIONS[action][0]}`, got `{' '.join(options.words)}`"
            )
    words = options.words[1:] if options.words[:1] == ["show"] else options.words
    if not words:
        raise UsageError("models show: expected a model's name, got nothing; `models` lists them")
    if len(words) > 2:  # noqa: PLR2004 - a name and a version
        raise UsageError(f"models: expected a name and a version, got {' '.join(words)}")
    return _show(repository, words[0], words[1] if words[1:] else None, as_json=options.json)


def _publish_again(repository: Any, options: Any) -> int:
    """Roll back to a version, or promote the version that a run holds back."""
    from unitrain.commands import _model_actions as versions
    from unitrain.runs import find_run

    action, name, *number = options.words
    if action == "rollback":
        return versions.rollback(repository, name, chosen(repository, name, *number), as_json=options.json)
    if not options.run:
        raise UsageError(f"models promote: expected `{_ACTIONS['promote'][0]}`, got no --run")
    run_dir = find_run(options.run, options.experiments_dir)
    return versions.promote(repository, name, run_dir, as_json=options.json)


def _pairs(repository: Any, names: Sequence[str]) -> list[tuple[str, int]]:
    """Return the selected (model, version) pairs: one, all of a model, or all of the repository."""
    match names:
        case [name, number]:
            return [(name, chosen(repository, name, number))]
        case [name]:
            chosen(repository, name, None)
            return [(name, number) for number in repository.versions(name)]
    return [(name, number) for name in repository.models() for number in repository.versions(name)]


def _list(repository: Any, url: str | None, *, as_json: bool) -> int:
    from unitrain.commands._output import print_json, print_table
    from unitrain.terminal_output import note, say

    served = None if url is None else _served(url)
    versions = [version for model in repository.models() for version in _marked(repository, model)]
    if as_json:
        print_json([_as_json(version) | _served_json(version, served) for version in versions])
        return 0
    if versions:
        if served is None:
            print_table(_COLUMNS, [_row(version) for version in versions], right=_RIGHT)
        else:
            rows = [[*_row(v), "yes" if v.version in served.get(v.model, ()) else "no"] for v in versions]
            print_table((*_COLUMNS, "served"), rows, right=_RIGHT)
    else:
        say(f"there is no version of any model in {repository.root}; `fit` publishes them")
    for version in versions:
        if version.unreadable:
            note(version.unreadable)
    for model in (None, *repository.models()):
        others = repository.foreign(model)
        if others:
            where = repository.root / model if model else repository.root
            note(f"ignored in {where}, since they are no models or versions: {', '.join(others)}")
    return 0


def _marked(repository: Any, model: str) -> list[_Version]:
    """Return a model's versions, each with its rank among comparable versions."""
    from unitrain.repository.ranking import marks

    found = [_read(repository, model, number) for number in repository.versions(model)]
    versions = [version for version in found if version]
    places = marks([version.manifest for version in versions])
    return [replace(version, mark=mark) for version, mark in zip(versions, places, strict=True)]


def _served(url: str) -> dict[str, list[int]]:
    from unitrain.client import Client

    with Client(url) as client:
        return client.models()


def _served_json(version: _Version, served: dict[str, list[int]] | None) -> dict[str, Any]:
    return {} if served is None else {"served": version.version in served.get(version.model, ())}


def _show(repository: Any, model: str, number: str | None, *, as_json: bool) -> int:
    from unitrain.commands._output import flat_fields, print_fields, print_json, text_of_bytes, text_of_time

    wanted = chosen(repository, model, number)
    version = next((v for v in _marked(repository, model) if v.version == wanted), None)
    if version is None:
        raise RepositoryError(
            f"{model}: version {wanted} has just been removed; `models` lists the existing ones"
        )
    if version.unreadable:
        raise RepositoryError(version.unreadable)
    if as_json:
        print_json(_as_json(version))
        return 0
    fields: list[tuple[str, Any]] = [
        ("model", version.model),
        ("version", version.version),
        ("path", version.path),
        ("size", text_of_bytes(version.size_bytes)),
        ("published", text_of_time(version.published_at)),
    ]
    if version.manifest is None:
        print_fields(fields)
        print("it has no manifest, so its origin is unknown")
        return 0
    place = " ".join(filter(None, (version.mark.text, _place(version.mark))))
    fields.append(("among comparable versions", place))
    shown = version.manifest.to_json() | {"signature": str(version.manifest.signature)}
    hidden = ("format", "model", "version")
    print_fields(fields + flat_fields({key: value for key, value in shown.items() if key not in hidden}))
    return 0


def chosen(repository: Any, model: str, number: str | None) -> int:
    """Parse a version number of a model; None selects the newest version.

    Raises:
        RepositoryError: there is no such model or version; the message names the existing ones.
    """
    numbers: list[int] = repository.versions(model)
    if not numbers:
        near = difflib.get_close_matches(model, repository.models(), n=1)
        hint = f"did you mean {near[0]}?" if near else "`models` lists the existing ones"
        raise RepositoryError(f"there is no model {model} with a version in {repository.root}; {hint}")
    if number is None:
        return numbers[-1]
    if number not in map(str, numbers):
        raise RepositoryError(
            f"{model} has no version {number} in {repository.root}; it has {', '.join(map(str, numbers))}"
        )
    return int(number)


def _read(repository: Any, model: str, number: int) -> _Version | None:
    """Read a version; return None if it was pruned in the meantime."""
    from unitrain.repository.manifest import read_manifest

    path: Path = repository.version_dir(model, number)
    manifest, unreadable = None, None
    try:
        manifest = read_manifest(path)
    except RepositoryError as error:
        unreadable = str(error)
    try:
        size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        published_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
    except (OSError, OverflowError, ValueError) as error:
        size_bytes, published_at, unreadable = (
            0,
            datetime.fromtimestamp(0, UTC),
            unreadable or f"{path}: {error}",
        )
    if manifest is not None:
        published_at = _time(manifest.published_at) or published_at
    return _Version(model, number, path, published_at, size_bytes, manifest, unreadable)


def _time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _place(mark: Any) -> str:
    """Return the description of a version's marks."""
    outcome = f"{mark.outcome} than the version before" if mark.outcome in ("better", "worse") else ""
    if mark.outcome == "equal":
        outcome = "equal to the version before"
    return ", ".join(filter(None, ("the best" if mark.best else "", outcome))) or "-"


def _row(version: _Version) -> list[str]:
    from unitrain.commands._output import NOTHING, text_of, text_of_bytes, text_of_time

    manifest = version.manifest
    metric = manifest.metric if manifest else None
    return [
        version.model,
        str(version.version),
        text_of_time(version.published_at),
        _run(manifest) if manifest else "unreadable" if version.unreadable else NOTHING,
        text_of(manifest.step if manifest else None),
        f"{metric.name} {text_of(metric.value)} {version.mark.text}".rstrip() if metric else NOTHING,
        manifest.weights if manifest else NOTHING,
        NOTHING if version.parity is None else f"{version.parity:.1e}",
        text_of_bytes(version.size_bytes),
    ]


def _run(manifest: Any) -> str:
    again = manifest.rolled_back_from
    if again:
        return f"{manifest.run} (version {again['version']} again)"
    return f"{manifest.run} (promoted)" if manifest.promoted else str(manifest.run)


def _as_json(version: _Version) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.version,
        "path": str(version.path),
        "published_at": version.published_at.isoformat(),
        "size_bytes": version.size_bytes,
        "parity": version.parity,
        "outcome": version.mark.outcome,
        "best": version.mark.best,
        "manifest": version.manifest.to_json() if version.manifest else None,
        "error": version.unreadable,
    }
