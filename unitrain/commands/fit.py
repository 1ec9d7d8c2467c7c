"""`fit`: train, and publish versions of the model while doing so."""

import json
from collections.abc import Sequence
from pathlib import Path

from unitrain.errors import UsageError

USAGE = """usage: python -m unitrain fit --config F [--json] [--SETTING VALUE ...]

Train by a settings file, and publish versions of the model while doing so.

  --config F             the settings file
  --SECTION.NAME VALUE   any setting, in the place of the file's: --trainer.max_epochs 40, --publish null
  --json                 print the result as one JSON object
  --quiet                tell nothing but warnings
  --debug                show the traceback of an error
"""


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code."""
    words = list(argv)
    flags = {name: name in words for name in ("--json", "--quiet", "--help", "-h")}
    words = [word for word in words if word not in flags]
    if flags["--help"] or flags["-h"]:
        print(USAGE)
        _print_settings()
        return 0
    config, rest = _take_config(words)
    from unitrain.training.fitting import Fit
    from unitrain.training.settings_cli import read_settings

    result = Fit(config, read_settings(config), rest, quiet=flags["--quiet"]).run()
    if flags["--json"]:
        print(json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in vars(result).items()}))
    return result.exit_code


def _take_config(words: list[str]) -> tuple[Path, list[str]]:
    rest, config = [], None
    iterator = iter(words)
    for word in iterator:
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            value = value if equals else next(iterator, "")
            if config is not None or not value:
                raise UsageError("fit: --config takes one settings file, once (see fit --help)")
            config = Path(value)
        else:
            rest.append(word)
    if config is None:
        raise UsageError("fit: --config F is required: the settings file to train by (see fit --help)")
    return config, rest


def _print_settings() -> None:
    """The sections and their fields with defaults; Lightning's own keys are Lightning's to explain."""
    import dataclasses
    import inspect

    from unitrain import settings

    print(
        "settings beside Lightning's own (trainer, model, data, optimizer, lr_scheduler, seed_everything):\n"
    )
    for name in ("Monitor", "Ema", "EarlyStopping", "Embeddings", "Summaries", "Publish", "Client"):
        kind = getattr(settings, name)
        section = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
        print(f"{section}: {inspect.cleandoc(kind.__doc__)}")
        texts = _field_texts(inspect.getsource(kind))
        for field in dataclasses.fields(kind):
            has_default = field.default is not dataclasses.MISSING
            default = f" (default: {field.default})" if has_default else ""
            print(f"  --{section}.{field.name}  {texts.get(field.name, '')}{default}")
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
