"""Draws a training's settings and interruptions, runs it with and without them, and compares the ends.

Every training is a process of its own, forked from this one, which has imported torch and Lightning once.
"""

# ruff: noqa: C901, PLR0912, PLR0124

import json
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import unitrain

PROJECT = Path(__file__).parent / "project"
EVENTS = (
    "setup", "fit_start", "train_start", "epoch_start", "batch_start", "backward", "batch_end", "validation",
    "validation_end", "saving", "epoch_end", "train_end",
)  # fmt: skip
MOST_ATTEMPTS = 6


@dataclass(frozen=True)
class Draw:
    """Settings, and the interruptions of one run after the other: (event, how many of it, signal)."""

    number: int
    settings: dict[str, Any]
    interruptions: list[tuple[str, int, int]]
    starts_anew: bool = False


@dataclass(frozen=True)
class Verdict:
    """What differs at the end; nothing where the resume was exact."""

    differences: list[str]
    exact: bool
    reasons: list[str]
    cpu_s: float


def drawn(seed: int, number: int) -> Draw:
    """A draw by its number."""
    rng = random.Random(f"{seed}:{number}")

    def maybe(share: float) -> bool:
        return rng.random() < share

    loader = rng.choice(["torch", "torch", "torch", "dataset", "dataset", "array", "stream", "two"])
    workers = rng.choice([0, 2]) if loader != "array" else 0
    manual = maybe(0.15)
    accumulation = 1 if manual else rng.choice([1, 1, 1, 2, 4])
    estimated = maybe(0.4) and loader != "stream"
    gradual = not manual and not estimated and maybe(0.1)
    trainer: dict[str, Any] = {
        "max_epochs": rng.choice([3, 4]),
        "accelerator": "cpu",
        "log_every_n_steps": rng.choice([1, 1, 2, 5]),
        "precision": rng.choice(["32-true", "32-true", "bf16-mixed"]),
        "enable_progress_bar": False,
        "num_sanity_val_steps": rng.choice([0, 2]),
    }
    if accumulation > 1:
        trainer["accumulate_grad_batches"] = accumulation
    if not manual and maybe(0.4):
        trainer["gradient_clip_val"] = 0.5
    if maybe(0.3):
        trainer["limit_train_batches"] = 4 if loader != "stream" or maybe(0.5) else 1.0
    validation = rng.choice(["epoch", "epoch", "half", "batches", "across", "every second"])
    if validation == "half" and loader != "stream":
        trainer["val_check_interval"] = 0.5
    elif validation == "batches":
        trainer["val_check_interval"] = 3
    elif validation == "across":
        trainer |= {"val_check_interval": 5, "check_val_every_n_epoch": None}
    elif validation == "every second":
        trainer["check_val_every_n_epoch"] = 2
    if maybe(0.15):
        trainer |= {"max_steps": rng.choice([7, 10]), "max_epochs": -1 if maybe(0.5) and not estimated else 4}
    if maybe(0.15):
        trainer["reload_dataloaders_every_n_epochs"] = 1
    callbacks: list[dict[str, Any]] = [{"class_path": "models.drawn.Interrupter"}]
    if maybe(0.5):
        how = rng.choice([None, "step", "epoch"])
        callbacks.append(
            {
                "class_path": "pytorch_lightning.callbacks.LearningRateMonitor",
                "init_args": {"logging_interval": how},
            }
        )
    if gradual and accumulation == 1:
        callbacks.append(
            {
                "class_path": "pytorch_lightning.callbacks.GradientAccumulationScheduler",
                "init_args": {"scheduling": {0: 1, 1: 2}},
            }
        )
    if maybe(0.3):
        callbacks.append({"class_path": "models.drawn.Counter"})
    trainer["callbacks"] = callbacks
    scheduler = rng.choice(["none", "onecycle", "onecycle", "cosine", "step", "plateau", "plateau_step"])
    settings = {
        "experiment": f"draw{number}",
        "seed_everything": rng.randrange(100),
        "model": {
            "class_path": "models.drawn.Drawn",
            "init_args": {
                "frozen_norm": maybe(0.3),
                "dropout": rng.choice(["none", "plain", "2d"]),
                "optimizer": rng.choice(["nesterov", "adam", "adamw"]),
                "scheduler": scheduler,
                "estimated": estimated and trainer["max_epochs"] != -1,
                "manual": manual,
                "optimizers": rng.choice([1, 2]) if manual else 1,
                "noise": rng.choice(["none", "transfer", "numpy", "python", "own"]),
                "hooks": maybe(0.3),
                "metrics": maybe(0.4),
                "max_steps": 60,
            },
        },
        "data": {
            "class_path": "datamodules.drawn.DrawnData",
            "init_args": {
                "loader": loader,
                "workers": workers,
                "persistent": bool(workers) and maybe(0.5),
                "prefetch": rng.choice([1, 2, 4]),
                "source": rng.choice(["none", "random", "numpy", "torch", "generator", "all", "all"]),
                "shuffle": maybe(0.8),
                "sampler": rng.choice(
                    ["none", "none", "replacement", "weighted", "own_torch", "own_numpy", "python"]
                ),
                "noisy_validation": maybe(0.3),
            },
        },
        "trainer": trainer,
        "ema": {"decay": 0.9, "every_n_steps": rng.choice([1, 2])} if maybe(0.7) else None,
        "early_stopping": {"patience": rng.choice([1, 2])} if maybe(0.3) else None,
        "embeddings": None,
        "summaries": {"graph": False} if maybe(0.2) else None,
        "publish": {"every_n_validations": 1, "repository": f"repository{number}"} if maybe(0.1) else None,
    }
    interruptions = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        event = rng.choice([*EVENTS, "batch_end", "batch_end", "batch_start", "validation"])
        most = {"batch_start": 18, "backward": 14, "batch_end": 18, "validation": 8, "saving": 4}.get(
            event, 3
        )
        once = event in ("setup", "fit_start", "train_start", "train_end")
        how = signal.SIGTERM if maybe(0.6) and event != "setup" else signal.SIGKILL
        interruptions.append((event, 1 if once else rng.randint(1, most), int(how)))
    return Draw(number, settings, interruptions)


def warm_up(folder: Path) -> None:
    """Train once in this process: what that imports and reads needs not be done again in its forks."""
    settings = _project(drawn(0, 0), folder)
    here = Path.cwd()
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _train(settings)
    finally:
        os.chdir(here)


def _train(settings: Path) -> None:
    unitrain.fit(
        settings, {"trainer.max_epochs": 1, "publish": None, "data.init_args.workers": 0}, quiet=True
    )


def _project(draw: Draw, root: Path) -> Path:
    shutil.copytree(PROJECT, root)
    settings = root / "problem" / "settings.yaml"
    settings.write_text(yaml.safe_dump(draw.settings))
    return settings


def check(draw: Draw, folder: Path) -> Verdict:
    """Run a draw whole and interrupted, below a folder that holds the project, and compare."""
    before = os.times()
    whole = _runs(draw, folder / "whole", [])
    interrupted = _runs(draw, folder / "interrupted", draw.interruptions)
    after = os.times()
    differences = _differences(whole, interrupted)
    record = json.loads((interrupted / "run.json").read_text()) if interrupted.exists() else {}
    exact = record.get("exact_resume", {})
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return Verdict(differences, bool(exact.get("exact")), list(exact.get("reasons", [])), spent)


def _runs(draw: Draw, root: Path, interruptions: list[tuple[str, int, int]]) -> Path:
    """The folder of the run in which the training ended, after all interruptions."""
    settings = _project(draw, root)
    waiting = list(interruptions)
    for _ in range(MOST_ATTEMPTS):
        text = ":".join(map(str, waiting.pop(0))) if waiting else ""
        code = _in_a_process(settings, root, text)
        if code == 0:
            break
        if code not in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
            raise AssertionError(f"exit code {code}:\n{(root / 'log.txt').read_text()[-4000:]}")
        # TensorBoard orders event files by the second in their names.
        time.sleep(1.0 - time.time() % 1.0)
    else:
        raise AssertionError(f"never ended:\n{(root / 'log.txt').read_text()[-4000:]}")
    runs = sorted(
        (root / "experiments" / draw.settings["experiment"]).iterdir(), key=lambda p: p.stat().st_ctime
    )
    ended = [
        run for run in runs if json.loads((run / "run.json").read_text())["status"] in ("finished", "stopped")
    ]
    return ended[-1]


def _in_a_process(settings: Path, root: Path, interruption: str) -> int:
    """One training in a fork of this process; its exit code, negative for a signal."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        os.setsid()
        log = os.open(root / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["UNITRAIN_INTERRUPT"] = interruption
        os.chdir(root)
        warnings.simplefilter("default")  # Lightning's, about what is drawn
        print(f"--- {interruption or 'without interruption'}", flush=True)
        code = unitrain.fit(settings, resume="auto").exit_code
    except BaseException:  # noqa: BLE001 - it is told by the exit code
        traceback.print_exc()
    finally:
        os._exit(code)


def _differences(whole: Path, interrupted: Path) -> list[str]:
    found = []
    for name in ("last", "best"):
        a, b = (_state(run / "checkpoints" / f"{name}.ckpt") for run in (whole, interrupted))
        found += [f"{name}.ckpt: {path}" for path in _unequal(a, b)]
    a, b = (json.loads((run / "run.json").read_text()) for run in (whole, interrupted))
    for key in ("status", "reason", "metrics", "best", "epoch", "step"):
        if not _same(a.get(key), b.get(key)):
            found.append(f"run.json: {key}: {a.get(key)} against {b.get(key)}")
    versions = [
        max((entry["step"] for entry in record.get("published", [])), default=None) for record in (a, b)
    ]
    if versions[0] != versions[1]:
        found.append(f"last published step {versions[0]} against {versions[1]}")
    a, b = _scalars(whole), _scalars(interrupted)
    found += [
        f"TensorBoard: {tag}: {_first_difference(a.get(tag, []), b.get(tag, []))}"
        for tag in sorted(a.keys() | b.keys())
        if not _same(a.get(tag), b.get(tag))
    ]
    return found


def _state(path: Path) -> Any:
    if not path.exists():
        return None
    content = torch.load(path, weights_only=True)
    kept = (
        "state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "averaging_state", "global_step", "epoch",
    )  # fmt: skip
    callbacks = {
        name: {k: v for k, v in value.items() if not k.endswith(("path", "dirpath", "best_k_models"))}
        for name, value in content["callbacks"].items()
    }
    return {key: content[key] for key in kept if key in content} | {"callbacks": callbacks}


def _unequal(a: Any, b: Any, path: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [p for key in a.keys() | b.keys() for p in _unequal(a.get(key), b.get(key), f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [p for i, (x, y) in enumerate(zip(a, b, strict=True)) for p in _unequal(x, y, f"{path}/{i}")]
    return [] if _same(a, b) else [path]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) or (a != a and b != b)


def _scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("publish/") and "second" not in tag
    }


def _first_difference(a: list[Any], b: list[Any]) -> str:
    for x, y in zip(a, b, strict=False):
        if not _same(x, y):
            return f"{x} against {y}"
    return f"{len(a)} points against {len(b)}: {sorted(set(a) ^ set(b))[:4]}"


def describe(draw: Draw) -> dict[str, Any]:
    """The draw as one line of JSON may hold it."""
    return asdict(draw)
