"""The judge: trains a pattern by `unitrain.fit`, and holds each served version against the live module's own answers.

It shares no code with the publisher's gates. The live module is queried at each validation in a forked child
process, whose memory is a copy of the training's: averaged weights in place, and whatever a forward changes is
changed in the child alone. A version's graph is opened by plain onnxruntime afterwards.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import onnxruntime
import pytorch_lightning as pl
import torch
from torch import Tensor

import unitrain
from corpus.case import Case
from unitrain.errors import UsageError
from unitrain.onnx_export.export_process import ExportProcess
from unitrain.repository import read_config
from unitrain.settings import Publish

SIZES = (1, 3, 17, 64, 600)
EPOCHS = 3
LIVE_WITHIN_S = 60.0
PUBLISHED_WITHIN_S = 30.0
ABSOLUTE, RELATIVE = 2e-4, 2e-3
INTEGER_SHARE = 1e-3
"""Integers that a rounding may tip either way: the default of `publish.tolerance.integer_share`."""
HALF_ABSOLUTE, HALF_RELATIVE = 2e-2, 2e-2

Kind = Literal["equal", "refused", "WRONG", "crashed", "refused late"]
GOOD = ("equal", "refused")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a pattern fared.

    Attributes:
        kind: `equal`, `refused` (before the first epoch, exit code 2), or a defect.
        detail: a refusal's sentence, the first difference, or the error.
        versions: versions judged.
        cpu_s: CPU time of this process and of its ended children.
    """

    kind: Kind
    detail: str = ""
    versions: int = 0
    cpu_s: float = 0.0

    def as_declared(self, must: str) -> bool:
        """Whether the verdict is one that the pattern accepts."""
        return self.kind in {"either": GOOD, "late": (*GOOD, "refused late")}.get(must, (must,))


@contextlib.contextmanager
def one_export_process() -> Iterator[None]:
    """A block in which all trainings share one process for exporting, which takes seconds to start."""
    shared, export, close = ExportProcess(), ExportProcess.__call__, ExportProcess.close

    def through_shared(_: ExportProcess, *args: Any, **kwargs: Any) -> Any:
        return export(shared, *args, **kwargs)

    try:
        with mock.patch.multiple(ExportProcess, __call__=through_shared, close=lambda self: None):
            yield
    finally:
        close(shared)


def judge(case: Case, folder: Path) -> Verdict:
    """Train a pattern in a scratch folder, and compare everything that was published.

    Args:
        folder: the working folder, with a pyproject.toml, so that it is the project's root.
    """
    started = _cpu_s()
    verdict = _judge(case, folder)
    return dataclasses.replace(verdict, cpu_s=_cpu_s() - started)


def train(
    case: Case, folder: Path, live: "LiveAnswers", repository: Path | None = None
) -> unitrain.RunResult:
    """The end of a pattern's training by `unitrain.fit`, which `live` looks on at.

    Args:
        repository: where versions go; default: the folder's own.
    """
    overrides = {} if repository is None else {"publish.repository": str(repository)}
    # What a pattern's own parts warn of is not judged.
    with warnings.catch_warnings(), contextlib.chdir(folder):
        warnings.simplefilter("ignore")
        return unitrain.fit(settings_of(case), overrides, callbacks=[live], quiet=True)


def _judge(case: Case, folder: Path) -> Verdict:
    live = LiveAnswers(case)
    try:
        result = train(case, folder, live)
    except UsageError as error:
        text = str(error)
        if live.trained:
            return Verdict("refused late", text)
        return Verdict("refused" if is_sentence(text) else "crashed", text)
    except Exception as error:  # noqa: BLE001 - whatever a pattern brings about is its verdict
        return Verdict("crashed", f"{type(error).__name__}: {' '.join(str(error).split())}")
    record = json.loads((result.run_dir / "run.json").read_text())
    model_dir = folder / "triton_repo" / case.name
    published = {step_of(model_dir, version): version for version in result.published}
    for step, version in published.items():
        wrong = compare_version(case, model_dir, version, live.answers.get(step))
        if wrong:
            return Verdict("WRONG", f"version {version} of step {step}: {wrong}", len(published))
    last = max(live.answers, default=0)
    if last not in published:
        refused = [entry for entry in record.get("refused") or () if entry["step"] == last]
        reason = refused[-1]["reason"] if refused else "nothing was published"
        return Verdict("refused late", reason, len(published))
    return Verdict("equal", versions=len(published))


def step_of(model_dir: Path, version: int) -> int:
    """The training step that a version's manifest names."""
    return int(json.loads((model_dir / str(version) / "manifest.json").read_text())["step"])


def settings_of(case: Case) -> dict[str, Any]:
    """The settings file's content for a pattern: every validation is published."""
    publish: dict[str, Any] = {"every_n_validations": 1}
    if "policy" in {field.name for field in dataclasses.fields(Publish)}:
        publish["policy"] = "every"
    sections = {"embeddings": None, "summaries": None, "early_stopping": None, "seed_everything": 1}
    own = {key: value for key, value in case.settings.items() if key != "publish"}
    return {
        "experiment": case.name,
        "model": {"class_path": f"{case.module.__module__}.{case.module.__qualname__}"},
        "data": {"class_path": "corpus.case.CaseData", "init_args": {"case": case.name}},
        "trainer": {"max_epochs": EPOCHS, "accelerator": "cpu", **case.trainer},
        "publish": publish | dict(case.settings.get("publish") or {}),
        **sections,
        **own,
    }


def is_sentence(text: str) -> bool:
    """Whether a message is one line that ends in something to do."""
    return bool(text) and "\n" not in text and "Traceback" not in text


class LiveAnswers(pl.Callback):
    """The live module's answers at each validation, by global step.

    Attributes:
        answers: by step, by size: outputs by name, or the error of the module's own forward.
        trained: whether a step was taken.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.answers: dict[int, dict[int, Any]] = {}
        self.trained = False
        self._waits = True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.trained = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._query(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not any(trainer.num_val_batches):
            self._query(trainer, pl_module)

    def _query(self, trainer: Any, module: Any) -> None:
        """Record the answers, once the version before is published or refused.

        So each validation's version is judged, and no other thread holds a lock of torch's at the fork.
        """
        deadline = time.monotonic() + PUBLISHED_WITHIN_S
        while self._waits and not self._is_settled(Path(trainer.default_root_dir)):
            if time.monotonic() > deadline:
                self._waits = False
            time.sleep(0.005)
        # CUDA does not survive a fork; there the module is queried in this process, and restored.
        ask = in_child if module.device.type == "cpu" else in_place
        self.answers[trainer.global_step] = ask(lambda: self._ask(module))

    def _is_settled(self, run_dir: Path) -> bool:
        record = json.loads((run_dir / "run.json").read_text())
        entries = [*(record.get("published") or ()), *(record.get("refused") or ())]
        return max(self.answers, default=0) in {0, *(entry["step"] for entry in entries)}

    def _ask(self, module: pl.LightningModule) -> dict[int, Any]:
        modes = {part: part.training for part in module.modules()}
        device = module.device
        module.eval()
        answers: dict[int, Any] = {}
        for size in SIZES:
            inputs = {name: value.to(device) for name, value in self.case.rows(size, seed=size).items()}
            try:
                with torch.no_grad(), torch.autocast(device.type, enabled=False):
                    answers[size] = live_outputs(module, self.case, inputs)
            except Exception as error:  # noqa: BLE001 - a module that takes no such batch has no answer to it
                answers[size] = f"{type(error).__name__}: {error}"
        for part, training in modes.items():
            part.training = training
        return answers


def live_outputs(module: Any, case: Case, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a module answers, by the output names that the documentation promises."""
    if case.call is not None:
        outputs = case.call(module, inputs)
    elif hasattr(module, "postprocess"):
        outputs = module(**module.preprocess(inputs))
        outputs = module.postprocess({"output": outputs} if isinstance(outputs, Tensor) else outputs)
    else:
        outputs = module(**inputs)
    return {
        name: tensor.detach().resolve_conj().cpu().numpy().copy() for name, tensor in named(outputs).items()
    }


def named(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of a forward's outputs by their promised names; anything else has none."""
    if isinstance(value, Tensor):
        return {name or "output": value}
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif dataclasses.is_dataclass(value):
        items = vars(value).items()
    elif hasattr(value, "_asdict"):
        items = value._asdict().items()
    elif isinstance(value, tuple | list):
        items = [(str(i) if name else f"output_{i}", item) for i, item in enumerate(value)]
    return {
        k: t for key, item in items for k, t in named(item, f"{name}_{key}" if name else str(key)).items()
    }


def compare_version(case: Case, model_dir: Path, version: int, live: Any) -> str | None:
    """The first difference of a version from the live module's answers; None if there is none."""
    if not isinstance(live, dict):
        return f"the live module was not queried at that step: {live}"
    config = read_config(model_dir / "config.pbtxt")
    most = config.max_batch_size
    session = onnxruntime.InferenceSession(str(model_dir / str(version) / "model.onnx"), _options())
    scalars = [output.name for output in session.get_outputs() if output.shape == []]
    if scalars:
        return f"{', '.join(scalars)} has no axis, which Triton never loads"
    sizes = [size for size in SIZES if isinstance(live[size], dict) and (not most or size <= most)]
    sizes = [size for size in sizes if _takes(session, case.rows(size, seed=size))]
    if not sizes:
        return f"no batch size of {SIZES} can be compared"
    wrong = [
        _difference(live[size], _run(session, case.rows(size, seed=size)), f"{size} rows") for size in sizes
    ]
    wrong += [
        _among_others(case, session, live, size, among)
        for size, among in ((3, 17), (1, 64))
        if {size, among} <= set(sizes) and size + among - 1 <= most
    ]
    return next(filter(None, wrong), None)


def _among_others(case: Case, session: Any, live: dict[int, Any], size: int, among: int) -> str | None:
    """The first difference of rows that are served together with others."""
    inputs, others = case.rows(size, seed=size), case.rows(among - 1, seed=99)
    served = _run(session, {key: torch.cat([value, others[key]]) for key, value in inputs.items()})
    if not isinstance(served, str):
        served = {name: value[:size] for name, value in served.items()}
    return _difference(live[size], served, f"{size} rows among {among - 1} others")


def in_place(work: Any) -> Any:
    """The result of a call in this process, in full float32; the random generators stay as they were."""
    with torch.random.fork_rng(), torch.backends.cudnn.flags(allow_tf32=False):
        return work()


def in_child(work: Any) -> Any:
    """The result of a call in a forked child, whose effects end with it; a text where it failed."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of a fork beside threads
        pid = os.fork()
    if not pid:
        try:
            os.close(reader)
            try:
                torch.set_num_threads(1)
                data = pickle.dumps(work())
            except BaseException as error:  # noqa: BLE001 - the parent reports it
                data = pickle.dumps(f"{type(error).__name__}: {error}")
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(data)
        finally:
            os._exit(0)
    os.close(writer)
    data, deadline = b"", time.monotonic() + LIVE_WITHIN_S
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            chunk = pipe.read(1 << 20)
            if not chunk:
                break
            data += chunk
        else:
            os.kill(pid, signal.SIGKILL)
            data = pickle.dumps(f"no answer within {LIVE_WITHIN_S} s")
    os.waitpid(pid, 0)
    return pickle.loads(data)  # noqa: S301 - the child's own


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _takes(session: Any, inputs: dict[str, Any]) -> bool:
    """Whether a graph's fixed lengths are those of the inputs."""
    for value in session.get_inputs():
        shape = tuple(inputs[value.name].shape) if value.name in inputs else ()
        if any(isinstance(n, int) and n != m for n, m in zip(value.shape, shape, strict=False)):
            return False
    return True


def _run(session: Any, inputs: dict[str, Any]) -> dict[str, np.ndarray] | str:
    wanted = {value.name for value in session.get_inputs()}
    unknown = wanted - set(inputs)
    if unknown:
        return f"the graph has inputs that the pattern has not: {', '.join(sorted(unknown))}"
    names = [output.name for output in session.get_outputs()]
    try:
        arrays = session.run(names, {name: inputs[name].numpy() for name in wanted})
    except Exception as error:  # noqa: BLE001 - onnxruntime's own errors have no common class
        return f"onnxruntime: {' '.join(str(error).split())[:300]}"
    return dict(zip(names, arrays, strict=True))


def _difference(live: dict[str, np.ndarray], served: dict[str, np.ndarray] | str, where: str) -> str | None:
    if isinstance(served, str):
        return f"{where}: {served}"
    # A value without an axis may be left out; one of a single row may have its axis.
    expected = {n: a if a.ndim else a[None] for n, a in live.items() if a.ndim or n in served}
    if set(served) != set(expected):
        return f"{where}: outputs are {sorted(served)}, the live module's {sorted(expected)}"
    different = ((name, _array_difference(array, served[name])) for name, array in expected.items())
    return next((f"{where}: {name} {text}" for name, text in different if text), None)


def _array_difference(array: np.ndarray, got: np.ndarray) -> str | None:
    if (got.shape, got.dtype) != (array.shape, array.dtype):
        return f"is {got.dtype} of the shape {got.shape}, the live module's {array.dtype} of {array.shape}"
    if not np.issubdtype(array.dtype, np.inexact):
        apart = np.mean(got != array)
        return f"differs in {apart:.2%} of its values" if apart > INTEGER_SHARE else None
    half = array.dtype == np.float16
    absolute, relative = (HALF_ABSOLUTE, HALF_RELATIVE) if half else (ABSOLUTE, RELATIVE)
    if np.allclose(got, array, rtol=relative, atol=absolute, equal_nan=True):
        return None
    apart = np.nanmax(np.abs(got.astype(np.complex128) - array))
    return f"is off by {apart:.3g} at a scale of {np.nanmax(np.abs(array)):.3g}"


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
