"""A zoo of architectures: exported, how far onnxruntime is from torch, weights swapped or exported anew.

python benchmarks/publish_zoo.py
"""

import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "onnx_export"))

from zoo import ZOO

from unitrain.errors import PublishRefused, UsageError
from unitrain.onnx_export.graph_template import build_template
from unitrain.onnx_export.module_weights import perturbed, weights_of
from unitrain.publish import gates
from unitrain.repository.onnx_session import Tolerance


def row(name: str) -> tuple[str, ...]:
    """One architecture: what became of it, with weights that the export never saw."""
    build, sample = ZOO[name]
    torch.manual_seed(0)
    module = build()
    parameters = sum(p.numel() for p in module.parameters())
    started_s = time.perf_counter()
    try:
        template = build_template(module, sample, opset=20, tolerance=Tolerance())
    except UsageError as error:
        return name, f"{parameters}", "refused", "-", "-", "-", str(error)
    export_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    graph = template.with_weights(perturbed(weights_of(module), seed=99))
    later_ms = (time.perf_counter() - started_s) * 1e3
    sizes = {"batch_sizes": (1, 2, 13), "tolerance": Tolerance()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            graph.write(path)
            figures = gates.parity(template.served, gates.loadable(path), template.sample, **sizes)
        parity = f"{max(f['max_abs'] for f in figures.values()):.1e}"
    except PublishRefused as error:
        parity = f"refused: {error}"
    how = "swapped" if template.swappable else "exported anew"
    return name, f"{parameters}", "yes", parity, how, f"{export_s:.1f}", f"{later_ms:.1f}"


def main() -> int:
    """Measure, print, and return the exit code."""
    warnings.simplefilter("ignore")
    print(
        "| architecture | parameters | exported | parity (largest) | later versions | proof [s] | later [ms] |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in ZOO:
        print(f"| {' | '.join(row(name))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
