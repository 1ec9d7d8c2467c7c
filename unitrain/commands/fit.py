"""`fit`: train, and publish versions of the model while doing so."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unitrain.errors import UsageError

if TYPE_CHECKING:
    from unitrain.training.training_run import RunResult

USAGE = """usage: python -m unitrain fit --config F [--json] [--SETTING VALUE ...]
       python -m unitrain fit --resume RUN [--SETTING VALUE ...]
       python -m unitrain fit --config F --resume auto [--SETTING VALUE ...]

Train by a settings file, and publish versions of the model while doing so.

  --config F             the settings file, unitrain's own or a LightningCLI's; given several times, a later one
                         overrides what an earlier one says
  --resume RUN           continue a run in its own folder: a folder, a name, or `last`, the newest
                         unfinished one that has a checkpoint (of --config's experiment, if given)
  --resume auto          the same as `last` if there is such a run, else start a new one
  --init-from RUN        begin a new run with another's weights: its best checkpoint's, else its last
  --init-weights KIND    of these the averaged ones (ema, the default) or the raw ones
  --SECTION.NAME VALUE   any setting, in the place of the file's: --trainer.max_epochs 40, --publish null
  --trust                with --resume: import the run's code from wherever its run.json says
  --print_config         print all settings as they would be used, in unitrain's layout, and train nothing
  --json                 print the result as one JSON object
  --quiet                tell nothing but warnings
  --debug                show the traceback of an error
"""
OWN_OPTIONS = ("config", "resume", "init_from", "init_weights")


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code."""
    words = list(argv)
    flags = {name: name in words for name in ("--json", "--quiet", "--trust", "--help", "-h")}
    words = [word for word in words if word not in flags]
    if flags["--help"] or flags["-h"]:
        print(USAGE)
        _print_settings()
        return 0
    own, rest = _take_own(words)
    if flags["--trust"] and "resume" not in own:
        raise UsageError("fit: --trust goes with --resume RUN: it accepts the project that the run names")
    result = (
        _resume(own, rest, quiet=flags["--quiet"], trust=flags["--trust"])
        if "resume" in own
        else _start(own, rest, quiet=flags["--quiet"])
    )
    if flags["--json"]:
        print(json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in vars(result).items()}))
    return result.exit_code


def _start(own: dict[str, str], rest: list[str], *, quiet: bool) -> "RunResult":
    if "config" not in own:
        raise UsageError("fit: --config F is required: the settings file to train by (see fit --help)")
    weights = own.get("init_weights", "ema")
    if weights not in ("ema", "raw") or ("init_weights" in own and "init_from" not in own):
        raise UsageError("fit: --init-weights is ema or raw, and goes with --init-from RUN")
    from unitrain.training.parsing.settings_file import read_merged
    from unitrain.training.training_run import Fit

    paths = [Path(text) for text in own["config"].splitlines()]
    start_from = (own["init_from"], weights) if "init_from" in own else None
    training = Fit(paths[0], read_merged(paths), rest, start_from=start_from, over=paths[1:], quiet=quiet)
    return training.run()


def _resume(own: dict[str, str], rest: list[str], *, quiet: bool, trust: bool) -> "RunResult":
    if "init_from" in own:
        raise UsageError(
            "fit: --resume goes on with a run, --init-from begins a new one; give one of the two"
        )
    from unitrain.class_paths import project_root
    from unitrain.training.console import Console
    from unitrain.training.fit_and_resume import resume_by_flags, resume_or_start
    from unitrain.training.parsing.settings_file import read_merged
    from unitrain.training.parsing.settings_parser import absolute

    if own["resume"] == "auto":
        if "config" not in own:
            raise UsageError(
                "fit: --resume auto needs --config F, to start a new run if there is none to resume"
            )
        paths = [Path(text) for text in own["config"].splitlines()]
        return resume_or_start(
            paths[0], read_merged(paths), rest, over=paths[1:], trust=trust, console=Console(quiet=quiet)
        )
    experiment, root, folder = None, project_root(Path.cwd()), "experiments"
    if "config" in own:
        paths = [Path(text) for text in own["config"].splitlines()]
        config, raw = paths[0], read_merged(paths)
        root = project_root(config.absolute().parent)
        experiment = str(raw.get("experiment") or config.absolute().parent.name)
        folder = str(raw.get("experiments_dir") or folder)
    pairs = absolute(rest)
    for pair in pairs:
        if pair[0] == "--experiments_dir" and len(pair) > 1:
            folder = pair[1]
    changed = [word for pair in pairs if pair[0] != "--experiments_dir" for word in pair]
    return resume_by_flags(
        own["resume"], changed, root / folder, experiment, Console(quiet=quiet), trust=trust, project=root
    )


def _take_own(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The command's own options, and the settings that are left."""
    own: dict[str, str] = {}
    rest = []
    iterator = iter(words)
    for word in iterator:
        name, equals, value = word.partition("=")
        key = "config" if name == "-c" else name.removeprefix("--").replace("-", "_")
        if name.startswith("-") and key in OWN_OPTIONS:
            value = value if equals else next(iterator, "")
            several = key == "config"  # one a line
            if (key in own and not several) or not value or value.startswith("--"):
                raise UsageError(f"fit: {name} takes one value{'' if several else ', once'} (see fit --help)")
            own[key] = f"{own[key]}\n{value}" if key in own else value
        else:
            rest.append(word)
    return own, rest


def _print_settings() -> None:
    """The sections and their fields with defaults; Lightning's own keys are Lightning's to explain."""
    import dataclasses
    import inspect

    from unitrain.settings import SECTIONS

    def fields_of(kind: type, prefix: str) -> None:
        texts = _field_texts(inspect.getsource(kind))
        for field in dataclasses.fields(kind):
            name = f"{prefix}.{field.name}"
            if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
                fields_of(field.type, name)
                continue
            has_default = field.default is not dataclasses.MISSING
            default = f" (default: {field.default})" if has_default else ""
            print(f"  --{name}  {texts.get(field.name, '')}{default}")

    print(
        "settings beside Lightning's own (trainer, model, data, optimizer, lr_scheduler, seed_everything):\n"
    )
    for section, kind in SECTIONS.items():
        print(f"{section}: {inspect.cleandoc(kind.__doc__ or '')}")
        fields_of(kind, section)
        print()


def _field_texts(source: str) -> dict[str, str]:
    """The strings under a dataclass's fields, which are their meaning and unit."""
    import ast
    import itertools

    texts = {}
    kind = ast.parse(source).body[0]
    for above, below in itertools.pairwise(kind.body if isinstance(kind, ast.ClassDef) else []):
        match above, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = text
    return texts
