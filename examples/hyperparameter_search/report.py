"""Report of an Optuna search as text and pictures."""

import warnings
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState


def report_lines(study: optuna.Study, epochs: int, metric: str) -> list[str]:
    """Counts, the best beside the settings as they are (the first trial), and what pruning saved.

    Args:
        study: with its trials.
        epochs: epochs of a complete trial.
        metric: the monitored one's name.
    """
    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    pruned = [t for t in trials if t.state is TrialState.PRUNED]
    lost = [t for t in trials if t.state is TrialState.FAIL and "failure" not in t.user_attrs]
    failed = len([t for t in trials if t.state is TrialState.FAIL]) - len(lost)
    lines = [
        (
            f"{len(trials)} trials: {len(complete)} complete, {len(pruned)} pruned, {failed} failed, "
            f"{len(lost)} lost with their workers"
        )
    ]
    if complete:
        best, first = study.best_trial, trials[0]
        lines.append(f"best {metric} {best.value:.5g}, trial {best.number}")
        if first.state is TrialState.COMPLETE:
            lines.append(f"the settings as they are: {first.value:.5g}")
        lines += [f"  {name}: {value}" for name, value in best.params.items()]
    if pruned:
        done, spared = _seconds(pruned), _spared_s(pruned, epochs)
        lines.append(
            f"pruning: {sum(map(_epochs, pruned))} of {epochs * len(pruned)} epochs and {done:.0f} s spent on the "
            f"pruned; about {spared:.0f} s saved of {_seconds(complete) + done + spared:.0f}"
        )
    return lines


def draw_plots(study: optuna.Study, folder: Path, metric: str) -> list[Path]:
    """Write Optuna's pictures of the search: its history, intermediate values, importances; their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as drawing

    folder.mkdir(parents=True, exist_ok=True)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    plots = {"history": lambda: drawing.plot_optimization_history(study, target_name=metric)}
    if any(t.intermediate_values for t in study.get_trials(deepcopy=False)):
        plots["intermediate_values"] = lambda: drawing.plot_intermediate_values(study)
    if len({t.value for t in complete}) > 1:  # else nothing varies that could be due to anything
        plots["importances"] = lambda: drawing.plot_param_importances(study, target_name=metric)
    written = []
    for name, plot in plots.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            axes = plot()
        if name == "intermediate_values":
            axes.set(xlabel="epoch", ylabel=metric)
        path = folder / f"{name}.png"
        axes.figure.savefig(path, dpi=80, bbox_inches="tight")
        plt.close(axes.figure)
        written.append(path)
    return written


def _epochs(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("epochs", 0))


def _seconds(trials: list[FrozenTrial]) -> float:
    return sum(float(t.user_attrs.get("duration_s", 0.0)) for t in trials)


def _spared_s(pruned: list[FrozenTrial], epochs: int) -> float:
    """Seconds that the pruned ones would have gone on for, at the pace they had."""
    return sum(_seconds([t]) * (epochs / n - 1) for t in pruned if (n := _epochs(t)))
