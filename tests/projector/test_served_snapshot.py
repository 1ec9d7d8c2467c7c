"""What a real server answers, seen in TensorBoard beside the validation set's points."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_models
from tensorboard_server import TensorBoard
from time_limits import LIMIT_S
from triton_server import TritonServer

from unitrain.projector import write_snapshot


def test_answers_of_a_server_lie_beside_the_validations_points(
    triton: TritonServer, tensorboard: TensorBoard, run_dir: Path
) -> None:
    """`predict --output projector:RUN` of a run's folder: TensorBoard lists both, each with its values."""
    run_dir.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(2).normal(size=(30, 3)).astype("f4")
    version = onnx_models.publish_model(triton.repository, "linear")
    triton.wait_for("linear", version)
    validation = tensorboard.wait_for(write_snapshot(run_dir, "validation", {"y": x}, step=12))
    np.save(run_dir / "x.npy", x)
    command = ["predict", "linear", "--url", triton.url, "--input", str(run_dir / "x.npy")]
    subprocess.run(
        [sys.executable, "-m", "unitrain", *command, "--output", f"projector:{run_dir}"],
        check=True,
        timeout=LIMIT_S,
    )
    served = tensorboard.wait_for(run_dir / "served" / "embeddings" / f"step_{version}")
    np.testing.assert_allclose(tensorboard.tensor(validation, "validation/y@12"), x, rtol=2e-5)
    shown = tensorboard.tensor(served, f"linear/y@{version}")
    np.testing.assert_allclose(shown, 2 * x, rtol=1e-4)
    labels = tensorboard.labels(served, f"linear/y@{version}")
    assert labels == {"version": [str(version)] * 30, "sample": list(map(str, range(30)))}
