"""Actions of the command `models`: diff, verify, rollback, promote and prune."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from unitrain.errors import UsageError

if TYPE_CHECKING:
    from unitrain.repository import Repository
    from unitrain.repository.verify import Check

_MOST_WEIGHTS = 20
_WORDS = {True: "passed", False: "FAILED", None: "nothing to check"}


def diff(repository: "Repository", model: str, first: int, second: int, *, as_json: bool) -> int:
    """Print the differences of two versions."""
    from unitrain.commands._output import print_json, print_table, text_of
    from unitrain.repository.version_diff import compare_versions
    from unitrain.terminal_output import say

    found = compare_versions(repository.version_dir(model, first), repository.version_dir(model, second))
    if as_json:
        print_json({"model": model, "versions": [first, second]} | asdict(found))
        return 0
    names = ("", f"version {first}", f"version {second}")
    rows = [[name, text_of(a), text_of(b)] for name, (a, b) in found.lineage.items()]
    rows += [[name, text_of(a), text_of(b)] for name, (a, b) in found.metrics.items()]
    if rows:
        print_table(names, rows, right=names[1:])
        print()
    if found.settings is None:
        print("settings: unknown, since a run's folder or a manifest is missing")
    elif found.settings:
        shown = [
            [key, *("null" if v is None else str(v) for v in pair)] for key, pair in found.settings.items()
        ]
        print_table(("setting", *names[1:]), shown)
    else:
        print("the settings are equal")
    print()
    if found.weights:
        print_table(
            ("weight", "shape", "largest difference", "relative"),
            [
                [w.name, "x".join(map(str, w.shape)) or "1", f"{w.max_abs:.3g}", f"{w.relative:.3g}"]
                for w in found.weights[:_MOST_WEIGHTS]
            ],
            right=("largest difference", "relative"),
        )
    left = len(found.weights) - _MOST_WEIGHTS
    say(
        (f"… and {left} more; " if left > 0 else "")
        + f"{len(found.weights)} weights differ, {found.equal_weights} are equal bit by bit"
        + (f"; only in one version: {', '.join(found.only)}" if found.only else "")
    )
    return 0


def verify(
    repository: "Repository", pairs: Sequence[tuple[str, int]], url: str | None, *, as_json: bool
) -> int:
    """Verify versions on the disk, and on a server if its address is given; return 1 if a check fails."""
    from unitrain.commands._output import print_json, print_table
    from unitrain.repository.verify import verify_version
    from unitrain.terminal_output import say

    results: list[tuple[str, int, Check]] = []
    for model, version in pairs:
        checks = verify_version(repository.version_dir(model, version))
        if url is not None:
            from unitrain.client.golden import check_served

            checks.append(check_served(repository.version_dir(model, version), model, version, url))
        results += [(model, version, check) for check in checks]
    if as_json:
        print_json([{"model": m, "version": v} | asdict(check) for m, v, check in results])
    elif results:
        rows = [[m, str(v), check.name, _WORDS[check.passed], check.detail] for m, v, check in results]
        print_table(("model", "version", "check", "outcome", ""), rows, right=("version",))
    else:
        say(f"there is no version of any model in {repository.root}")
    return int(any(check.passed is False for _, _, check in results))


def rollback(repository: "Repository", model: str, version: int, *, as_json: bool) -> int:
    """Publish an earlier version again, under a new number."""
    from unitrain.commands._output import print_json
    from unitrain.repository.repository import roll_back

    number = roll_back(repository, model, version)
    if as_json:
        print_json({"model": model, "version": number, "rolled_back_from": version})
    else:
        print(f"published {model} version {number}, a copy of version {version}")
    return 0


def promote(repository: "Repository", model: str, run_dir: Path, *, as_json: bool) -> int:
    """Publish the version that a run holds back, under the next number."""
    from unitrain.commands._output import print_json
    from unitrain.repository.promote import promote as promoted

    manifest = promoted(repository, model, run_dir)
    if as_json:
        print_json({"model": model, "version": manifest.version, "run": manifest.run, "step": manifest.step})
    else:
        print(
            f"published {model} version {manifest.version}: step {manifest.step} of {manifest.run}, which was held back"
        )
    return 0


def prune(repository: "Repository", models: Sequence[str], keep: int, *, as_json: bool) -> int:
    """Remove old versions; those that are served or may be loading stay."""
    from unitrain.commands._output import print_json
    from unitrain.repository import read_config

    if keep < 1:
        raise UsageError(f"models prune: --keep must be at least 1, got {keep}")
    removed = {}
    for model in models:
        policy = read_config(repository.config_path(model)).version_policy
        served = max(policy.latest.num_versions, 1)
        removed[model] = repository.prune(model, keep, num_versions=served)
    if as_json:
        print_json(removed)
        return 0
    for model, numbers in removed.items():
        kept = ", ".join(map(str, repository.versions(model)))
        print(f"{model}: removed {', '.join(map(str, numbers)) or 'nothing'}; it has {kept}")
    return 0
