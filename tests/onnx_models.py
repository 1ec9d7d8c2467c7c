"""Small ONNX models, and their publication, for tests of the server and of the client."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from unitrain.atomic_files import sha256_of
from unitrain.repository import Repository, model_config
from unitrain.repository.manifest import Manifest, Metric
from unitrain.repository.onnx_session import Tolerance, run_onnx
from unitrain.signature import DTYPES, Signature, TensorSpec

OPSET, IR_VERSION = 20, 10
Fill = Callable[[Path], None]


def linear_signature(n: int | None = 3, dtype: str = "FP32") -> Signature:
    """The signature of `linear_model`: `x` and `y`, [batch, n], or [batch] for n = None."""
    dims = () if n is None else (n,)
    return Signature((TensorSpec("x", dtype, dims),), (TensorSpec("y", dtype, dims),), batched=True)


def linear_model(path: Path, scale: float = 2.0, n: int | None = 3, dtype: str = "FP32") -> Path:
    """An ONNX file that answers y = scale * x for x of shape [batch, n]."""
    row = DTYPES[dtype]
    kind = getattr(TensorProto, row.onnx)
    factor = onnx.numpy_helper.from_array(np.asarray(scale, dtype=row.numpy), "scale")
    dims = ["batch"] if n is None else ["batch", n]
    return save_graph(
        path,
        [helper.make_node("Mul", ["x", "scale"], ["y"])],
        {"x": (kind, dims)},
        {"y": (kind, dims)},
        [factor],
    )


def save_graph(
    path: Path,
    nodes: list[Any],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    initializers: list[Any] | None = None,
) -> Path:
    """An ONNX file of these nodes; inputs and outputs are (element type, dims) by name."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()],
        [helper.make_tensor_value_info(name, *info) for name, info in outputs.items()],
        initializers or [],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def publish_model(
    root: Path,
    name: str = "linear",
    *,
    scale: float = 2.0,
    n: int | None = 3,
    dtype: str = "FP32",
    signature: Signature | None = None,
    fill: Fill | None = None,
    max_batch_size: int = 64,
    num_versions: int = 2,
    max_queue_delay_microseconds: int = 100,
    golden: Mapping[str, np.ndarray] | None = None,
    proven: bool = False,
    tolerance: Tolerance | None = None,
) -> int:
    """The number of a new version of `name` in the repository at `root`: `linear_model`, or what `fill` writes.

    `fill` gets the path of model.onnx; what it takes and gives is said by `signature`.

    Args:
        golden: inputs of golden samples; the version has a manifest then.
        proven: whether it has a manifest, without golden samples too.
        tolerance: written into the manifest.
    """
    config = model_config(
        name,
        signature or linear_signature(n, dtype),
        max_batch_size=max_batch_size,
        num_versions=num_versions,
        max_queue_delay_microseconds=max_queue_delay_microseconds,
    )
    with Repository(root).new_version(name, config) as staged:
        path = staged.path / "model.onnx"
        if fill is None:
            linear_model(path, scale, n, dtype)
        else:
            fill(path)
        if golden is not None or proven:
            prove(
                staged.path,
                name,
                staged.number,
                signature or linear_signature(n, dtype),
                golden,
                tolerance=tolerance,
            )
    return staged.number


def prove(
    version_dir: Path,
    name: str,
    number: int,
    signature: Signature,
    golden: Mapping[str, np.ndarray] | None = None,
    *,
    tolerance: Tolerance | None = None,
) -> None:
    """Write a version's golden samples and its manifest, as publishing does."""
    path = version_dir / "golden.npz"
    if golden is not None:
        answers = run_onnx(version_dir / "model.onnx", golden)
        texts = {n: a.astype(str) if a.dtype == object else a for n, a in answers.items()}
        arrays = {f"inputs/{n}": a for n, a in golden.items()} | {f"outputs/{n}": a for n, a in texts.items()}
        np.savez_compressed(path, allow_pickle=False, **arrays)
    beside = [p for p in version_dir.iterdir() if p.name not in ("model.onnx", "golden.npz", "manifest.json")]
    Manifest(
        model=name,
        version=number,
        published_at="2026-01-02T03:04:05.000+00:00",
        run="lines/2026-01-02_03-00-00",
        run_dir="/nowhere",
        step=10 * number,
        epoch=number,
        weights="ema",
        signature=signature,
        sha256=sha256_of(version_dir / "model.onnx"),
        golden_sha256=sha256_of(path) if golden is not None else None,
        files={p.name: sha256_of(p) for p in beside},
        metric=Metric("val_loss", 0.0123, "min"),
        parity={"y": {"max_abs": 1.2e-07, "max_rel": 3.4e-05}},
        tolerance=None if tolerance is None else asdict(tolerance),
    ).write(version_dir)


def publish_broken(root: Path, name: str = "linear", text: bytes = b"this is no graph") -> int:
    """The number of a new version of `name` that no runtime can open."""
    return publish_model(root, name, fill=lambda path: path.write_bytes(text) and None)
