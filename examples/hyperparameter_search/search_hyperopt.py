"""`python -m examples.hyperparameter_search.search_hyperopt`: a search by hyperopt, one trial after the other.

Every trial is a training by the settings with other values; it publishes nothing. After each trial the search is
written to a file, whole or not at all, and the same command resumes it. hyperopt knows no intermediate
values, so nothing is pruned; the settings' early stopping holds. At the end the best trial's best checkpoint is
published. Further options are settings of every trial, as for fit: --trainer.max_epochs 20.
"""

import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.hyperparameter_search.command import (
    add_common_options,
    option_parser,
    publish_run,
    run_command,
)
from examples.hyperparameter_search.space import read_space
from examples.hyperparameter_search.trial import Objective, parse_overrides, train_trial
from unitrain.atomic_files import write_bytes
from unitrain.errors import SettingsError, UnitrainError, UsageError


class InterruptedSearch(UnitrainError):  # noqa: N818 - an ending, not a fault
    """A signal ended the trial in hand."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("interrupted: the same command resumes the search")
        self.code = exit_code


def main(argv: Sequence[str]) -> int:
    """Run the search and return the exit code."""
    parser = option_parser("search_hyperopt", __doc__ or "")
    add_common_options(parser, study="hyperopt.pickle")
    options, further = parser.parse_known_args(argv)
    objective = Objective.read(options.config, parse_overrides(further))
    path: Path = options.study or objective.search_dir / "hyperopt.pickle"
    space = {
        d.name: d.hyperopt() for d in read_space(options.space or options.config.with_name("space.yaml"))
    }
    try:
        trials = search(objective, space, path, total=options.trials, seed=options.seed)
    except InterruptedSearch as ending:
        print(ending, file=sys.stderr)
        return ending.code
    good = [result for result in trials.results if result["status"] == "ok"]
    print(f"{len(trials)} trials: {len(good)} complete, {len(trials) - len(good)} failed")
    if not good:
        print("no trial came to an end", file=sys.stderr)
        return 1
    best = min(good, key=lambda result: result["loss"])
    print(f"best {objective.metric} {best['value']:.5g}, trial {trials.results.index(best)}")
    for name, value in best["settings"].items():
        print(f"  {name}: {value}")
    if options.publish:
        return publish_run(Path(best["run_dir"]), options.model_repository, objective.experiment)
    return 0


def search(objective: Objective, space: Mapping[str, Any], path: Path, *, total: int, seed: int) -> Any:
    """Run trials until there are `total`, those in the file included; return hyperopt's trials.

    Each trial's draw is a function of the seed and the trials before it: a resumed search tries what an
    uninterrupted one would have tried.

    Args:
        objective: description of the training.
        space: hyperopt's expressions by the settings' dotted names.
        path: path of the search's file.
        total: trials, the earlier ones included.
        seed: seed of the draws.

    Raises:
        SettingsError: the file holds something else than hyperopt's trials.
        InterruptedSearch: a signal ended a training.
    """
    from hyperopt import STATUS_FAIL, STATUS_OK, Trials, fmin, tpe

    def evaluate(values: Mapping[str, Any]) -> dict[str, Any]:
        plain = {name: _plain(value) for name, value in values.items()}
        number = len(trials.trials) - 1  # hyperopt has put this one in already
        try:
            result = train_trial(objective, plain, lambda _epoch, _value: False)
        except UsageError:
            raise
        except UnitrainError as error:
            print(f"trial {number} failed: {error}", flush=True)
            return {"status": STATUS_FAIL, "failure": str(error)}
        if result.interrupted:
            raise InterruptedSearch(result.interrupted)
        if result.value is None:
            return {"status": STATUS_FAIL, "failure": f"{objective.metric} was never measured"}
        print(
            f"trial {number}: {objective.metric} {result.value:.5g}, {result.epochs} epochs, {result.duration_s:.1f} s",
            flush=True,
        )
        return {
            "status": STATUS_OK,
            "loss": result.value if objective.mode == "min" else -result.value,
            "value": result.value,
            "settings": plain,
            "run_dir": str(result.run_dir.absolute()),
        }

    trials = read_trials(path) or Trials()
    while len(trials.trials) < total:
        done = len(trials.trials)
        fmin(
            evaluate, dict(space), algo=tpe.suggest, max_evals=done + 1, trials=trials,
            rstate=np.random.default_rng([seed, done]), show_progressbar=False, verbose=False,
            allow_trials_fmin=False,
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, pickle.dumps(trials))
    return trials


def read_trials(path: Path) -> Any:
    """The trials of an earlier search's file; None where there is none. Open only files of your own: it is a pickle.

    Raises:
        SettingsError: the file holds something else.
    """
    from hyperopt import Trials

    if not path.exists():
        return None
    try:
        trials = pickle.loads(path.read_bytes())  # noqa: S301 - hyperopt's trials have no other form
    except Exception as error:
        raise SettingsError(f"--study {path} can't be read as hyperopt's trials: {error}") from error
    if not isinstance(trials, Trials):
        raise SettingsError(f"--study {path} holds a {type(trials).__name__}, expected hyperopt's trials")
    return trials


def _plain(value: Any) -> Any:
    """A value as YAML has it: hyperopt gives lists as tuples and numbers as numpy's."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
