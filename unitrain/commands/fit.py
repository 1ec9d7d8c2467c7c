"""`fit`: train, and publish versions of the model during training."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unitrain.commands._parser import ArgumentParser
from unitrain.errors import UsageError

if TYPE_CHECKING:
    from unitrain.training.training_run import RunResult

USAGE = """python -m unitrain fit --config F [--SECTION.NAME VALUE ...]
       python -m unitrain fit --resume RUN [--SECTION.NAME VALUE ...]
       python -m unitrain fit --config F --resume auto [--SECTION.NAME VALUE ...]"""
LIGHTNING = {
    "model.class_path": ("CLASS", "class of the LightningModule: package.module.Class"),
    "model.init_args.NAME": ("VALUE", "argument of its __init__; --model.help CLASS lists them"),
    "data.class_path": ("CLASS", "class of the LightningDataModule; omit it if the module has the loaders"),
    "data.init_args.NAME": ("VALUE", "argument of its __init__; --data.help CLASS lists them"),
    "trainer.NAME": ("VALUE", "argument of Lightning's Trainer: max_epochs, accelerator, devices, precision, callbacks"),
    "optimizer": ("CLASS", "class of torch.optim, in the place of the module's configure_optimizers"),
    "lr_scheduler": ("CLASS", "class of torch.optim.lr_scheduler"),
    "seed_everything": ("SEED", "seed of all random numbers; default: 42"),
    "links": ("MAPPING", "arguments of the model that are properties of the data module: {data.NAME: model.init_args.NAME}"),
    "step_seeding": ("BOOL", "derive the seed of each step from seed, epoch and batch; default: true"),
    "experiment": ("NAME", "name of the experiment; default: the name of the settings file's folder"),
    "experiments_dir": ("DIR", "folder of the run folders; default: experiments"),
}  # fmt: skip
"""Settings outside of unitrain's sections: (placeholder of the value, description) by name."""


class _FitParser(ArgumentParser):
    """Parser of the command's own options; its help also lists the settings, as jsonargparse describes them."""

    def format_help(self) -> str:
        import jsonargparse

        from unitrain.settings import SECTIONS

        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        described = jsonargparse.ArgumentParser(prog=self.prog, usage=argparse.SUPPRESS, add_help=False)
        group = described.add_argument_group("settings of model, data and Trainer")
        for name, (value, text) in LIGHTNING.items():
            group.add_argument(f"--{name}", metavar=value, help=text, default=argparse.SUPPRESS)
        for name, kind in SECTIONS.items():
            described.add_class_arguments(kind, name)
        return f"{super().format_help()}\n{described.format_help().lstrip()}"


def _parser() -> ArgumentParser:
    parser = _FitParser(
        "fit",
        "Train by a settings file, and publish versions of the model during training.",
        usage=USAGE,
        epilog="Every setting of the file is also an option, which overrides the file: --trainer.max_epochs 40. "
        "`--SECTION null` turns a section off. Exit codes: 0 finished, 1 failed, 2 wrong settings.",
    )
    add = parser.add_argument
    add(
        "-c",
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="F",
        help="settings file, unitrain's or LightningCLI's; given several times, a later one overrides an earlier one",
    )
    add(
        "--print_config",
        nargs="?",
        const="",
        metavar="=FLAGS",
        help="print all settings as YAML in unitrain's layout, and do not train; the output is a settings file",
    )
    add(
        "--resume",
        metavar="RUN",
        help="continue a run in its folder: a folder, a name, or `last`, the newest unfinished run with a checkpoint "
        "(of --config's experiment, if given); `auto` is `last`, but starts a new run if there is none",
    )
    add(
        "--init-from",
        metavar="RUN",
        help="start a new run with the weights of another: its best checkpoint, else its last",
    )
    add(
        "--init-weights",
        choices=("ema", "raw"),
        help="kind of these weights: averaged (ema, the default) or raw",
    )
    add(
        "--trust",
        action="store_true",
        help="with --resume: import the run's code from any project that its run.json names",
    )
    add("--json", action="store_true", help="print the result as one JSON object")
    add("--quiet", action="store_true", help="print warnings only")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    options, flags = _parser().parse_known_args(list(argv))
    if options.trust and not options.resume:
        raise UsageError("fit: --trust goes with --resume RUN: it accepts the project that the run names")
    if options.init_weights and not options.init_from:
        raise UsageError("fit: --init-weights goes with --init-from RUN")
    if options.resume and options.init_from:
        raise UsageError("fit: --resume continues a run, --init-from starts a new one; give one of the two")
    if not options.config and options.resume in (None, "auto"):
        purpose = "to start a new run if there is none to resume" if options.resume else "to train by"
        raise UsageError(f"fit: --config F is required: the settings file {purpose} (see fit --help)")
    result = _run(options, flags)
    if options.json:
        print(json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in vars(result).items()}))
    return result.exit_code


def _run(options: Any, flags: Sequence[str]) -> "RunResult":
    from unitrain.training.console import Console
    from unitrain.training.fit_and_resume import resume_by_flags, resume_or_start
    from unitrain.training.parsing.settings_file import RawSettings
    from unitrain.training.training_run import TrainingRun

    if options.print_config is not None:
        flags = [*flags, *filter(None, ("--print_config", options.print_config))]
    settings = RawSettings.read(options.config or {}, flags)
    console = Console(quiet=options.quiet)
    if options.resume is None:
        start_from = (options.init_from, options.init_weights or "ema") if options.init_from else None
        return TrainingRun(settings, start_from=start_from, quiet=options.quiet).run()
    if options.resume == "auto":
        return resume_or_start(settings, trust=options.trust, console=console)
    changed = [word for flag in settings.flags if flag[0] != "--experiments_dir" for word in flag]
    experiment = settings.experiment if options.config else None
    return resume_by_flags(
        options.resume, changed, settings.experiments_dir, experiment, console,
        trust=options.trust, project=settings.root,
    )  # fmt: skip
