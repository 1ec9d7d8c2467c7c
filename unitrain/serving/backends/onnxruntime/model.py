"""Triton backend for ONNX models that uses pip's onnxruntime, for a Triton without the native backend.

Triton starts it for every model with `backend: "onnxruntime"` in config.pbtxt. Parameters have the native backend's
names.

The wheel's stub was built for numpy 1. Under numpy 2 its arrays have strides of 0, and its tensors have 0 bytes.
Numbers are therefore exchanged by DLPack, and strings by `numpy2_strings.py`.

A version with a manifest is loaded only if its files match the manifest and its golden samples get the published
answers. The session is opened from the bytes that were hashed.

This file is copied into a backends folder, with `integrity.py` and `tolerance.py` beside it, and runs inside
Triton's Python stub. It imports nothing of unitrain.
"""

import faulthandler
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import integrity
import numpy as np
import numpy2_strings
import onnxruntime as ort
import tolerance
import triton_python_backend_utils as pb_utils

Arrays = dict[str, np.ndarray[Any, Any]]

_CONFIG_TYPE = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
_NUMPY_OF_CONFIG: dict[str, Any] = {
    "TYPE_BOOL": np.bool_,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": object,
    **{f"TYPE_{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}
_GRAPH_LEVEL = {
    "-1": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "1": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "2": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
"""Levels of `optimization { graph { level } }` in config.pbtxt, as in the native backend."""
_ORT_ERRORS_ONLY = 3
_IN_MEMORY_BYTES = 1 << 30
"""Maximum size of all files of a version that are opened from memory. Larger files are hashed, then opened by their
path, and must not be written to in between."""


class TritonPythonModel:
    """One instance of one version of a model."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the version's graph and check it against config.pbtxt, its manifest and its golden samples.

        Raises:
            TritonModelException: the file can't be opened, or contradicts config.pbtxt or the manifest; the
                message names the file and the cause.
        """
        faulthandler.enable()  # a crash inside onnxruntime prints its stack to Triton's log
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"], args["model_version"], file_name)
        try:
            _check_file_name(file_name)
            options, providers = _session_options(config), _providers(args["model_instance_kind"])
            files = integrity.read_checked(path.parent, in_memory_bytes=_IN_MEMORY_BYTES)
            self._session = (
                ort.InferenceSession(path, options, providers=providers)
                if files is None
                else _open_checked(files, file_name, options, providers)
            )
            _check_tensors("input", config["input"], self._session.get_inputs())
            _check_all_fed(config, self._session.get_inputs())
            _check_tensors("output", config["output"], self._session.get_outputs())
            _check_axes(self._session, config)
            self._strings = {t["name"] for t in config["input"] if t["data_type"] == "TYPE_STRING"}
            if any(t["data_type"] == "TYPE_STRING" for t in (*config["input"], *config["output"])):
                numpy2_strings.prepare()
            if files is not None:
                _check_golden(self._session, files)
        except integrity.Contradiction as error:  # it names the file
            raise pb_utils.TritonModelException(_one_line(error)) from error
        except Exception as error:
            raise pb_utils.TritonModelException(f"{path}: {_one_line(error)}") from error
        self._batched = int(config.get("max_batch_size", 0)) > 0
        self._inputs = [tensor["name"] for tensor in config["input"]] + _controls(config)
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request, in order; a request that can't be answered fails alone."""
        responses: list[Any] = [None] * len(requests)
        feeds: dict[int, Arrays] = {}
        for index, request in enumerate(requests):
            try:
                feeds[index] = self._feed(request)
            except (ValueError, pb_utils.TritonModelException) as error:
                responses[index] = _failure(error)
        for group in self._groups(feeds):
            outputs = self._answer([feeds[index] for index in group])
            for index, answer in zip(group, outputs, strict=True):
                responses[index] = self._response(requests[index], answer)
        return responses

    def finalize(self) -> None:
        """Release the graph."""
        del self._session

    def _feed(self, request: Any) -> Arrays:
        feed: Arrays = {}
        for name in self._inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                continue  # an optional input
            feed[name] = (
                numpy2_strings.to_strings(tensor) if name in self._strings else np.from_dlpack(tensor)
            )
        return feed

    def _groups(self, feeds: Mapping[int, Arrays]) -> Iterable[list[int]]:
        """Group requests that one run can answer: equal names, types, and shapes except for the batch axis."""
        groups: dict[Any, list[int]] = {}
        for index, feed in feeds.items():
            key: Any = index
            if self._batched and feed:
                key = tuple((name, array.dtype.char, array.shape[1:]) for name, array in feed.items())
            groups.setdefault(key, []).append(index)
        return groups.values()

    def _answer(self, feeds: list[Arrays]) -> "list[Arrays | Exception]":
        if len(feeds) > 1:
            together = self._answer_together(feeds)
            if together is not None:
                return together
        return [self._run_or_error(feed) for feed in feeds]

    def _answer_together(self, feeds: list[Arrays]) -> "list[Arrays | Exception] | None":
        """Return the answers of one run for all requests, or None if each needs a run."""
        rows = [len(next(iter(feed.values()))) for feed in feeds]
        joined = self._run_or_error(
            {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        )
        if isinstance(joined, Exception):
            return None
        if any(array.ndim == 0 or len(array) != sum(rows) for array in joined.values()):
            return None
        ends = np.cumsum(rows)
        return [
            {name: array[end - count : end] for name, array in joined.items()}
            for end, count in zip(ends, rows, strict=True)
        ]

    def _run_or_error(self, feed: Arrays) -> "Arrays | Exception":
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        except Exception as error:  # noqa: BLE001 - onnxruntime raises types of its own; it becomes the answer
            return error

    def _response(self, request: Any, answer: "Arrays | Exception") -> Any:
        if isinstance(answer, Exception):
            return _failure(answer)
        requested = set(request.requested_output_names())
        return pb_utils.InferenceResponse(
            [_tensor(name, array) for name, array in answer.items() if name in requested]
        )


def _open_checked(files: Any, file_name: str, options: Any, providers: list[str]) -> Any:
    """Open a session from the hashed bytes; large files are opened by their path and checked again afterwards."""
    if file_name not in files.identities:
        raise ValueError(f"config.pbtxt serves {file_name}, of which the manifest has no hash")
    beside = {name: files.contents.get(name) for name in files.identities if name != file_name}
    kept = file_name in files.contents and None not in beside.values()
    if beside and (not kept or not hasattr(options, "add_external_initializers_from_files_in_memory")):
        return _open_by_path(files, file_name, options, providers)
    if beside:
        options.add_external_initializers_from_files_in_memory(
            list(beside), list(beside.values()), [len(data) for data in beside.values()]
        )
    if not kept:
        return _open_by_path(files, file_name, options, providers)
    return ort.InferenceSession(files.contents[file_name], options, providers=providers)


def _open_by_path(files: Any, file_name: str, options: Any, providers: list[str]) -> Any:
    session = ort.InferenceSession(files.folder / file_name, options, providers=providers)
    files.check_unchanged()
    return session


def _check_golden(session: Any, files: Any) -> None:
    """Refuse a session that answers the golden samples outside of the version's tolerances."""
    golden = files.golden()
    if golden is None:
        return
    inputs, outputs = golden
    try:
        answers = session.run(list(outputs), integrity.feeds(inputs))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ValueError(f"the golden samples are not answered: {_one_line(error)}") from error
    allowed = tolerance.Tolerance.from_json(files.manifest.get("tolerance"))
    answers = dict(zip(outputs, answers, strict=True))
    difference = tolerance.golden_difference(outputs, answers, allowed, "this server")
    if difference.failure is not None:
        raise ValueError(
            f"the golden samples give other answers than when they were published: {difference.failure}"
        )


def _check_file_name(name: str) -> None:
    if Path(name).name != name:
        raise ValueError(f"default_model_filename must name a file in the version's folder, got {name}")


def _session_options(config: Mapping[str, Any]) -> Any:
    parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
    options = ort.SessionOptions()
    options.log_severity_level = _ORT_ERRORS_ONLY
    for key, value in parameters.items():
        if key == "intra_op_thread_count":
            options.intra_op_num_threads = int(value)
        elif key == "inter_op_thread_count":
            options.inter_op_num_threads = int(value)
        elif key == "execution_mode":
            parallel = int(value) == 1
            modes = ort.ExecutionMode
            options.execution_mode = modes.ORT_PARALLEL if parallel else modes.ORT_SEQUENTIAL
        elif key == "enable_mem_arena":
            options.enable_cpu_mem_arena = int(value) == 1
        elif key == "enable_mem_pattern":
            options.enable_mem_pattern = int(value) == 1
        elif key.startswith("session."):
            options.add_session_config_entry(key, value)
    level = str(config.get("optimization", {}).get("graph", {}).get("level", "0"))
    if level in _GRAPH_LEVEL:
        options.graph_optimization_level = _GRAPH_LEVEL[level]
    return options


def _providers(instance_kind: str) -> list[str]:
    cuda = "CUDAExecutionProvider"
    on_gpu = instance_kind == "GPU" and cuda in ort.get_available_providers()
    return [cuda, "CPUExecutionProvider"] if on_gpu else ["CPUExecutionProvider"]


def _check_tensors(kind: str, expected: Sequence[Mapping[str, Any]], present: Sequence[Any]) -> None:
    types = {tensor.name: _CONFIG_TYPE.get(tensor.type, tensor.type) for tensor in present}
    for tensor in expected:
        name, wanted = tensor["name"], tensor["data_type"]
        if name not in types:
            raise ValueError(f"config.pbtxt has the {kind} {name}, the graph has {', '.join(types)}")
        if types[name] != wanted:
            raise ValueError(f"the {kind} {name} is {wanted} in config.pbtxt, {types[name]} in the graph")


def _check_axes(session: Any, config: Mapping[str, Any]) -> None:
    """Refuse an output without any axis, such as a loss; a run shows it where onnxruntime does not know the shape."""
    served = {tensor["name"] for tensor in config["output"]}
    doubtful = [t.name for t in session.get_outputs() if t.name in served and not t.shape]
    if not doubtful:
        return
    batch = [1] if int(config.get("max_batch_size", 0)) > 0 else []
    types = {tensor.name: _NUMPY_OF_CONFIG[_CONFIG_TYPE[tensor.type]] for tensor in session.get_inputs()}
    zeros = {}
    for tensor in config["input"]:
        dims = tensor.get("reshape", {}).get("shape", tensor["dims"])
        shape = [*batch, *(max(int(length), 1) for length in dims)]
        dtype = types[tensor["name"]]
        zeros[tensor["name"]] = np.full(shape, "", object) if dtype is object else np.zeros(shape, dtype)
    try:
        found = session.run(doubtful, zeros)
    except Exception:  # noqa: BLE001 - not every graph accepts zeros: its answers are checked later
        return
    for name, array in zip(doubtful, found, strict=True):
        if np.ndim(array) == 0:
            raise ValueError(
                f"the output {name} has no batch axis: it is one value for all rows, such as a loss, which Triton "
                "can't serve; remove it from the results of forward"
            )


def _check_all_fed(config: Mapping[str, Any], present: Sequence[Any]) -> None:
    fed = {tensor["name"] for tensor in config["input"]} | set(_controls(config))
    missing = [tensor.name for tensor in present if tensor.name not in fed]
    if missing:
        raise ValueError(f"the graph needs the input {', '.join(missing)}, which config.pbtxt does not have")


def _controls(config: Mapping[str, Any]) -> list[str]:
    """Return the inputs that Triton adds to each request of a sequence: its start, its end, its number."""
    return [control["name"] for control in config.get("sequence_batching", {}).get("control_input", ())]


def _tensor(name: str, array: np.ndarray[Any, Any]) -> Any:
    return (numpy2_strings.from_strings if array.dtype.kind in "OSU" else numpy2_strings.from_array)(
        name, array
    )


def _failure(error: Exception) -> Any:
    # Errors about the content of a request; onnxruntime's InvalidArgument is one.
    invalid = isinstance(error, ValueError) or type(error).__name__ == "InvalidArgument"
    code = pb_utils.TritonError.INVALID_ARG if invalid else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(_one_line(error), code))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
