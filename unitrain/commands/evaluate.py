"""`validate` and `test`: metrics of a run's checkpoint."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from unitrain.commands._parser import ArgumentParser, add_checkpoint, add_experiments_dir
from unitrain.errors import UsageError

_TEXTS = {
    "validate": "Print the metrics of a run's checkpoint on the validation data, as they were in fit.",
    "test": "Print the metrics of a run's checkpoint on the test data.",
}


def validate(argv: Sequence[str]) -> int:
    """Run `validate`, and return its exit code."""
    return _main("validate", argv)


def test(argv: Sequence[str]) -> int:
    """Run `test`, and return its exit code."""
    return _main("test", argv)


def _parser(stage: str) -> ArgumentParser:
    parser = ArgumentParser(
        stage,
        _TEXTS[stage],
        epilog="--trainer.*, --data.* and --model.* replace the run's settings: --trainer.accelerator cpu",
    )
    add_checkpoint(parser)
    add_experiments_dir(parser, default=None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _main(stage: str, argv: Sequence[str]) -> int:
    parser = _parser(stage)
    options, rest = parser.parse_known_args(list(argv))
    wrong = [word for word in rest if word.startswith("--") and "." not in word.partition("=")[0]]
    if wrong:
        parser.error(f"unrecognized arguments: {wrong[0]}")
    if not options.run:
        raise UsageError(f"{stage}: --run RUN is required: a run's folder, its name, or `last`")
    from unitrain.class_paths import project_root
    from unitrain.commands._output import print_fields, print_json
    from unitrain.terminal_output import say
    from unitrain.training.console import Console
    from unitrain.training.evaluation import evaluate

    found = evaluate(
        options.run,
        "validate" if stage == "validate" else "test",
        checkpoint=options.checkpoint,
        weights=options.weights,
        overrides=rest,
        experiments_dir=options.experiments_dir or project_root(Path.cwd()) / "experiments",
        console=Console(),
        trust=options.trust,
    )
    if options.json:
        print_json(dataclasses.asdict(found) | {"run_dir": str(found.run_dir)})
        return 0
    say(f"{found.run_dir}: {found.checkpoint}, {found.weights} weights of step {found.step}")
    print_fields((name, value) for name, value in found.metrics.items())
    return 0
