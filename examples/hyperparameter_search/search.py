"""`python -m examples.hyperparameter_search.search`: a search by Optuna, on one or more processes.

Every trial is a training by the settings with other values; it publishes nothing. Where the metric after some
epochs is worse than that of earlier trials, the trial is pruned. The same command resumes a search that was
interrupted; started again elsewhere on the same file, it helps. At the end the best trial's best checkpoint is
published. Further options are settings of every trial, as for fit: --trainer.max_epochs 20.
"""

import argparse
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from examples.hyperparameter_search.command import (
    add_common_options,
    needed_number,
    option_parser,
    publish_run,
    run_command,
)
from examples.hyperparameter_search.report import draw_plots, report_lines
from examples.hyperparameter_search.space import Dimension, read_space, values_in
from examples.hyperparameter_search.study import SharedStudy
from examples.hyperparameter_search.trial import Objective, parse_overrides, train_trial
from unitrain.errors import UnitrainError, UsageError


def _parser() -> argparse.ArgumentParser:
    parser = option_parser("search", __doc__ or "")
    add_common_options(parser, study="optuna.journal")
    parser.add_argument("--workers", type=needed_number, default=1, metavar="N", help="processes")
    parser.add_argument(
        "--pruner",
        choices=("median", "hyperband", "none"),
        default="median",
        help="what ends hopeless trials",
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="for pictures of the search; default: none")
    parser.add_argument("--worker-index", type=int, default=None, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the search and return the exit code."""
    options, further = _parser().parse_known_args(argv)
    objective = Objective.read(options.config, parse_overrides(further))
    space = read_space(options.space or options.config.with_name("space.yaml"))
    path: Path = options.study or objective.search_dir / "optuna.journal"
    shared = SharedStudy.open(
        path,
        mode=objective.mode,
        pruner=options.pruner,
        epochs=objective.epochs,
        seed=options.seed,
        index=options.worker_index or 0,
    )
    if options.worker_index is not None:
        return work(shared, objective, space, options.trials)
    defaults = values_in(objective.settings, space)
    by_name = {dimension.name: dimension for dimension in space}
    shared.enqueue_first({name: by_name[name].as_parameter(value) for name, value in defaults.items()})
    lost = shared.fail_lost()
    if lost:
        print(f"lost with their workers: trials {', '.join(map(str, lost))}")
    if options.workers == 1:
        code = work(shared, objective, space, options.trials)
    else:
        code = _work_on_processes(argv, options.workers, shared)
    for line in report_lines(shared.study, objective.epochs, objective.metric):
        print(line)
    if code:
        print("the search is not done: the same command resumes it", file=sys.stderr)
        return code
    if options.plots:
        written = draw_plots(shared.study, options.plots, objective.metric)
        print(f"plots {', '.join(map(str, written))}")
    if options.publish:
        best = shared.study.best_trial
        return publish_run(Path(best.user_attrs["run_dir"]), options.model_repository, objective.experiment)
    return 0


def work(shared: SharedStudy, objective: Objective, space: Sequence[Dimension], total: int) -> int:
    """Do trials until `total` have ended; the exit code."""
    with shared.alive():
        while (trial := shared.next_trial(total)) is not None:
            values = {dimension.name: dimension.suggest(trial) for dimension in space}
            pruned = False

            def look_on(epoch: int, value: float, trial: Any = trial) -> bool:
                nonlocal pruned
                trial.report(value, epoch)
                pruned = trial.should_prune()
                return pruned

            try:
                result = train_trial(objective, values, look_on)
            except UsageError as error:
                _fail(shared, trial, str(error))
                raise
            except UnitrainError as error:  # for example, its loss was not a number
                _fail(shared, trial, str(error))
                print(f"trial {trial.number} failed: {error}", flush=True)
                continue
            for name, kept in (
                ("run_dir", str(result.run_dir.absolute())),
                ("epochs", result.epochs),
                ("duration_s", round(result.duration_s, 3)),
            ):
                trial.set_user_attr(name, kept)
            if result.interrupted:
                shared.study.tell(trial, state=TrialState.FAIL)
                return result.interrupted
            if pruned:
                shared.study.tell(trial, state=TrialState.PRUNED)
            elif result.value is None:
                _fail(shared, trial, f"{objective.metric} was never measured")
            else:
                shared.study.tell(trial, result.value)
            how = "pruned" if pruned else f"{objective.metric} {result.value:.5g}"
            print(
                f"trial {trial.number}: {how}, {result.epochs} epochs, {result.duration_s:.1f} s", flush=True
            )
    return 0


def _fail(shared: SharedStudy, trial: Any, reason: str) -> None:
    trial.set_user_attr("failure", reason)
    shared.study.tell(trial, state=TrialState.FAIL)


def _work_on_processes(argv: Sequence[str], workers: int, shared: SharedStudy) -> int:
    """Start the workers and wait for them; the exit code."""
    command = [sys.executable, "-m", "examples.hyperparameter_search.search", *argv]
    # torch would give each of them a thread for every core.
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads} | os.environ
    children = [
        subprocess.Popen([*command, "--worker-index", str(index)], env=environment)
        for index in range(1, workers + 1)
    ]

    def hand_on(number: int, _frame: object) -> None:
        for child in children:
            child.send_signal(number)

    previous = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [child.wait() for child in children]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for child, code in zip(children, codes, strict=True):
        if code < 0:
            print(f"worker {child.pid} ended by {signal.Signals(-code).name}", file=sys.stderr)
    shared.fail_lost()
    if 0 in codes:  # it has waited for the last trial
        return 0
    return max(codes) if max(codes) > 0 else 1


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.exit(run_command(main, sys.argv[1:]))
