"""`export`: publish a run's checkpoint through the gates that every version passes."""

from collections.abc import Sequence
from pathlib import Path

from unitrain.commands._parser import ArgumentParser, add_checkpoint, add_experiments_dir, parse


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "export",
        "Publish a run's checkpoint as a new version of its model, through the gates that every version passes.",
    )
    add_checkpoint(parser, required=True)
    add_experiments_dir(parser)
    parser.add_argument(
        "--model-repository",
        type=Path,
        metavar="DIR",
        help="model repository; default: the one in the run's settings",
    )
    parser.add_argument(
        "--model", metavar="NAME", help="name of the served model; default: the one in the run's settings"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = parse(_parser(), argv)
    from unitrain.runs import find_run

    run_dir = find_run(options.run, options.experiments_dir)
    from unitrain.commands._output import print_json
    from unitrain.publish import published_text
    from unitrain.terminal_output import say
    from unitrain.training.console import Console
    from unitrain.training.export_checkpoint import export_run

    manifest = export_run(
        run_dir,
        checkpoint=options.checkpoint,
        weights=options.weights,
        repository_dir=options.model_repository and options.model_repository.absolute(),
        model=options.model,
        console=Console(),
        trust=options.trust,
    )
    if options.json:
        print_json(manifest.to_json())
    else:
        say(published_text(manifest))
    return 0
