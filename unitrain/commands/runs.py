"""`runs`: list the runs of all experiments, show one, or compare two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unitrain.commands._parser import ArgumentParser, add_experiments_dir, parse
from unitrain.errors import UsageError

_COLUMNS = ("experiment", "run", "status", "started", "duration", "epoch/step", "best metric", "published")
_RIGHT = ("duration", "epoch/step")
_MANY = 6


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "runs",
        "List the runs of the experiments, newest last; show one, or compare two.",
        usage="python -m unitrain runs [show RUN | compare A B] [options]",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="show RUN | compare A B",
        help="RUN, A, B: folder of a run, its name or the beginning of its name, or `last`; default: list all runs",
        default=[],
    )
    add_experiments_dir(parser)
    parser.add_argument("--experiment", metavar="NAME", help="list only this experiment's runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(_parser(), argv)
    match options.words:
        case []:
            return _list(options.experiments_dir, options.experiment, as_json=options.json)
        case ["show", run]:
            return _show(run, options.experiments_dir, as_json=options.json)
        case ["compare", first, second]:
            return _compare(first, second, options.experiments_dir, as_json=options.json)
    raise UsageError(
        f"runs: expected nothing, `show RUN` or `compare A B`, got `{' '.join(options.words)}` (see --help)"
    )


def _list(experiments_dir: Path, experiment: str | None, *, as_json: bool) -> int:
    from unitrain.commands._output import print_json, print_table
    from unitrain.runs import check_experiment, list_runs
    from unitrain.terminal_output import note, say

    runs = list_runs(experiments_dir, None if experiment is None else check_experiment(experiment))
    if as_json:
        print_json([_as_json(run) for run in runs])
    elif runs:
        print_table(_COLUMNS, [_row(run) for run in runs], right=_RIGHT)
        for run in runs:
            if run.status == "unreadable":
                note(str(run.reason))
    else:
        where = experiments_dir / experiment if experiment is not None else experiments_dir
        say(f"there is no run in {where}; `fit` makes them")
    return 0


def _show(text: str, experiments_dir: Path, *, as_json: bool) -> int:
    from unitrain.commands._output import flat_fields, print_fields, print_json, text_of_duration
    from unitrain.runs import find_run, read_summary

    run = read_summary(find_run(text, experiments_dir))
    if as_json:
        print_json(_as_json(run))
        return 0
    fields: list[tuple[str, Any]] = [
        ("path", run.path),
        ("status", run.status),
        ("duration", text_of_duration(run.duration_s)),
    ]
    hidden = ("format", "status")
    print_fields(fields + flat_fields({key: value for key, value in run.record.items() if key not in hidden}))
    return 0


def _compare(first: str, second: str, experiments_dir: Path, *, as_json: bool) -> int:
    from unitrain.commands._output import print_json, print_table, text_of
    from unitrain.runs import compare_runs, find_run
    from unitrain.terminal_output import say

    found = compare_runs(find_run(first, experiments_dir), find_run(second, experiments_dir))
    names = [f"{run.experiment}/{run.name}" for run in (found.first, found.second)]
    if as_json:
        print_json({"runs": names, "settings": found.settings, "metrics": found.metrics})
        return 0
    say(f"A  {names[0]} ({found.first.status})")
    say(f"B  {names[1]} ({found.second.status})")
    print()
    if found.settings:
        rows = [
            [key, *("null" if v is None else str(v) for v in pair)] for key, pair in found.settings.items()
        ]
        print_table(("setting", "A", "B"), rows)
    else:
        print("the settings are equal")
    print()
    if found.metrics:
        rows = [[name, text_of(a), text_of(b)] for name, (a, b) in found.metrics.items()]
        print_table(("metric", "A", "B"), rows, right=("A", "B"))
    else:
        print("neither run has recorded a metric")
    return 0


def _row(run: Any) -> list[str]:
    from unitrain.commands._output import NOTHING, text_of, text_of_duration, text_of_time

    best = run.best
    versions = list(map(str, run.published))
    if len(versions) > _MANY:
        versions = [*versions[:2], "…", *versions[-2:]]
    position = NOTHING
    if run.epoch is not None or run.step is not None:
        position = f"{text_of(run.epoch)}/{text_of(run.step)}"
    return [
        run.experiment,
        run.name,
        run.status,
        text_of_time(run.started_at),
        text_of_duration(run.duration_s),
        position,
        f"{best.get('metric')} {text_of(best.get('value'))}" if best else NOTHING,
        ", ".join(versions) or NOTHING,
    ]


def _as_json(run: Any) -> dict[str, Any]:
    content: dict[str, Any] = run.record | {
        "path": str(run.path),
        "experiment": run.experiment,
        "name": run.name,
        "status": run.status,
        "reason": run.reason,
        "error": run.reason if run.status == "unreadable" else None,
        "duration_s": run.duration_s,
    }
    return content
