"""The searches by Optuna and by hyperopt: spaces, pruning, workers that are killed, resuming, publishing the best."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from commands import ROOT
from optuna.trial import TrialState
from terminal import Terminal
from time_limits import LIMIT_S, wait_until

from examples.hyperparameter_search import search, search_hyperopt
from examples.hyperparameter_search.cars import FEATURES, load_cars
from examples.hyperparameter_search.command import run_command
from examples.hyperparameter_search.data import AutoMpg
from examples.hyperparameter_search.report import draw_plots, report_lines
from examples.hyperparameter_search.space import read_space, values_in
from examples.hyperparameter_search.study import SharedStudy
from unitrain.errors import SettingsError
from unitrain.models.mlp import MLP

FOLDER = ROOT / "examples" / "hyperparameter_search"
README = FOLDER / "README.md"


def open_study(path: Path, **options) -> SharedStudy:
    return SharedStudy.open(
        path, **({"mode": "min", "pruner": "median", "epochs": 8, "seed": 0, "index": 0} | options)
    )


def test_space_is_the_same_to_both_drivers() -> None:
    """Whatever Optuna or hyperopt draws lies in the file's ranges and choices, and can be set."""
    from hyperopt.pyll.stochastic import sample

    space = read_space(FOLDER / "space.yaml")
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    drawn = sample({d.name: d.hyperopt() for d in space}, rng=np.random.default_rng(0))
    for dimension in space:
        assert dimension.holds(dimension.suggest(trial))
        assert dimension.holds(search_hyperopt._plain(drawn[dimension.name]))
    settings = yaml.safe_load((FOLDER / "settings.yaml").read_text())
    assert set(values_in(settings, space)) == {d.name for d in space}, "the settings are one of the trials"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.b: {low: 3, high: 1}", "expected low below high"),
        ("a.b: {low: 0, high: 1, log: true}", "above 0 where log"),
        ("a.b: {low: 1, hihg: 2}", "expected {low, high}"),
        ("a.b: {choices: []}", "expected choices, a list"),
        ("a.b: [1, 2]", "a.b: expected"),
        ("- 1", "expected dotted names"),
        ("a: {", "can't be read as a space"),
    ],
)
def test_wrong_space_is_said_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    """The file, the dimension, and what was expected of it."""
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"space\.yaml") as caught:
        read_space(path)
    assert said in str(caught.value)


def test_cars_are_split_without_overlap_and_standardised() -> None:
    """392 cars in three parts; the model's graph takes them in their own units."""
    parts = [load_cars(part) for part in ("train", "validation", "held_out")]
    rows = np.concatenate([np.hstack([p.features, p.miles_per_gallon]) for p in parts])
    assert [len(p.features) for p in parts] == [232, 80, 80]
    assert len(np.unique(rows, axis=0)) == 392
    assert (rows[:, 6:9].sum(1) == 1).all(), "a car has one origin"
    data = AutoMpg()
    model = MLP(feature_means=data.feature_means, feature_stds=data.feature_stds, hidden=[])
    standardised = model.preprocess({"features": next(iter(data.train_dataloader()))["features"]})["features"]
    assert standardised.shape[1] == len(FEATURES)
    assert float(standardised.abs().max()) < 6


def test_running_trials_of_a_worker_that_is_gone_are_lost(tmp_path: Path) -> None:
    """They no longer count, and another trial takes each one's place; those of the living are left alone."""
    path = tmp_path / "s.journal"
    gone, here = open_study(path), open_study(path, index=1)
    with gone.alive():
        assert gone.next_trial(2) is not None
        assert here.fail_lost() == [], "its worker lives"
    assert here.fail_lost() == [0]
    with here.alive():
        for number in (1, 2):
            trial = here.next_trial(2)
            assert trial is not None
            assert trial.number == number
            here.study.tell(trial, 1.0)
        assert here.next_trial(2) is None


def test_failed_trials_count_and_waiting_ones_are_waited_for(tmp_path: Path) -> None:
    """A trial that failed by itself is not done again: settings that always diverge come to an end."""
    shared = open_study(tmp_path / "s.journal")
    with shared.alive():
        trial = shared.next_trial(1)
        assert trial is not None
        search._fail(shared, trial, "the loss is NaN")
        assert shared.next_trial(1) is None
    assert "1 failed, 0 lost" in report_lines(shared.study, 8, "val_loss")[0]


def test_study_of_another_direction_is_refused(tmp_path: Path) -> None:
    """A file that was made for a minimum does not search for a maximum."""
    open_study(tmp_path / "s.journal")
    with pytest.raises(SettingsError, match="minimum, the settings for the maximum"):
        open_study(tmp_path / "s.journal", mode="max")


def test_plots_and_report_tell_what_pruning_saved(tmp_path: Path) -> None:
    """Two of eight epochs at a second each: six seconds saved."""
    shared = open_study(tmp_path / "s.journal")
    space = read_space(FOLDER / "space.yaml")
    with shared.alive():
        for value in (3.0, 2.0, 2.5, None):
            trial = shared.next_trial(4)
            assert trial is not None
            for dimension in space:
                dimension.suggest(trial)
            trial.report(value or 9.0, 0)
            trial.set_user_attr("epochs", 8 if value else 2)
            trial.set_user_attr("duration_s", 8.0 if value else 2.0)
            shared.study.tell(trial, value, state=None if value else TrialState.PRUNED)
    lines = "\n".join(report_lines(shared.study, 8, "val_rmse"))
    assert "3 complete, 1 pruned" in lines
    assert "best val_rmse 2, trial 1" in lines
    assert "2 of 8 epochs and 2 s spent on the pruned; about 6 s saved" in lines
    for path in draw_plots(shared.study, tmp_path / "plots", "val_rmse"):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("module", [search, search_hyperopt])
def test_wrong_words_end_with_exit_code_two(module, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence on stderr for a mistyped option, a missing file, and a number that is none."""
    assert run_command(module.main, ["--trails", "3"]) == 2
    assert "no option --trails" in capsys.readouterr().err
    assert run_command(module.main, ["--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml can't be read" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        module.main(["--trials", "0"])


def test_pruning_ends_a_hopeless_training_and_a_wrong_name_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After four good trials, two that learn nothing stop before their last epoch; a setting that is none: exit 2."""
    space = tmp_path / "space.yaml"
    # Four that learn; then two whose weights are decayed to nothing. A study has one range for each name.
    flags = ["--no-publish", "--space", str(space), "--experiments_dir", str(tmp_path / "experiments")]
    flags += ["--trainer.max_epochs", "8", "--trials"]
    space.write_text("model.init_args.lr: {low: 0.003, high: 0.01}")
    assert search.main([*flags, "4"]) == 0
    space.write_text("model.init_args.weight_decay: {low: 400.0, high: 500.0}")
    assert search.main([*flags, "6"]) == 0
    shown = capsys.readouterr().out
    assert "4 complete, 2 pruned" in shown
    study = open_study(tmp_path / "experiments" / "hyperparameter_search.search" / "optuna.journal").study
    pruned = study.get_trials(states=(TrialState.PRUNED,))
    assert all(t.user_attrs["epochs"] < 8 for t in pruned)
    record = yaml.safe_load((Path(pruned[0].user_attrs["run_dir"]) / "run.json").read_text())
    assert record["status"] == "stopped"
    assert not record.get("published")
    space.write_text("model.init_args.nothing: {low: 1, high: 5}")
    assert run_command(search.main, [*flags, "7"]) == 2


@pytest.mark.slow
def test_killed_worker_loses_one_trial_and_the_best_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After kill -9 in a trial: the other worker does one more, and the search goes on later."""
    experiments = tmp_path / "experiments"
    repository = ("--model-repository", str(tmp_path / "repository"))
    flags = ("--trials", "3", "--workers", "2", "--pruner", "none")
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.hyperparameter_search.search", *flags, *repository,
         "--experiments_dir", str(experiments), "--trainer.max_epochs", "4"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = experiments / "hyperparameter_search.search" / "optuna.journal"
    killed = wait_until(lambda: kill_a_worker(path), "no worker began a trial")
    shown, complaints = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, shown + complaints
    assert f"worker {killed} ended by SIGKILL" in complaints
    assert "4 trials: 3 complete, 0 pruned, 0 failed, 1 lost with their workers" in shown

    words = ["--trials", "4", "--pruner", "none", *repository, "--experiments_dir", str(experiments)]
    assert search.main([*words, "--trainer.max_epochs", "4"]) == 0
    assert "5 trials: 4 complete" in capsys.readouterr().out
    study = open_study(path).study
    runs = list((experiments / "hyperparameter_search").iterdir())
    assert len(runs) >= 4
    versions = (tmp_path / "repository" / "hyperparameter_search").glob("[1-9]*")
    assert sorted(path.name for path in versions) == ["1", "2"], "one a search, none a trial"
    assert study.best_value == min(t.value for t in study.get_trials(states=(TrialState.COMPLETE,)))


def kill_a_worker(path: Path) -> int | None:
    """Kill a worker in the middle of a trial and return its process id; None if no trial is running."""
    if not path.is_file():
        return None
    running = open_study(path).study.get_trials(states=(TrialState.RUNNING,))
    workers = [t.user_attrs["worker"] for t in running if t.intermediate_values and "worker" in t.user_attrs]
    if not workers:
        return None
    pid = int(workers[0].rsplit("-", 2)[1])
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.slow
def test_hyperopt_goes_on_where_it_was_interrupted_as_if_it_had_not_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two trials and then a third are the three of one search; the best of them is published, no other."""

    def search_with(trials: int, experiments: str, *flags: str) -> list[str]:
        words = ["--trials", str(trials), "--experiments_dir", str(tmp_path / experiments), *flags]
        assert search_hyperopt.main([*words, "--trainer.max_epochs", "3"]) == 0
        # Seconds differ from run to run.
        return [line.rpartition(",")[0] or line for line in capsys.readouterr().out.splitlines()]

    at_once = search_with(3, "one", "--no-publish")
    first = search_with(2, "two", "--no-publish")
    repository = tmp_path / "repository"
    later = search_with(3, "two", "--model-repository", str(repository))
    assert first[:2] + later == at_once
    assert [p.name for p in (repository / "hyperparameter_search").glob("[1-9]*")] == ["1"]
    assert at_once[3].startswith("3 trials: 3 complete")


@pytest.mark.slow
def test_the_best_trial_is_served(terminal: Terminal) -> None:
    """README's commands: the best of four short trials is what answers, and the pictures are drawn."""
    terminal.read(README)
    said = terminal.said("predict hyperparameter_search")
    assert float(said.split("RMSE ")[1].split()[0]) < 6.0  # the mean of all cars is off by 7.8
    assert list((terminal.project / "experiments" / "plots").glob("*.png"))
