"""From a command typed to its first sign of life: `fit`'s first step, beside the same training by Lightning alone.

`python benchmarks/startup.py [--rounds 5] [--json]`: processes in turn, each until its first batch begins. `fit` has
its defaults, so it has proven an export and looked at the repository by then. `fit --help` is timed too, and Python
itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from paired import line, ratio, summary, take_turns

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP = textwrap.dedent(
    """
    import os
    from pytorch_lightning import Callback

    class FirstStep(Callback):
        def on_train_batch_start(self, *_):
            os._exit(0)
    """
)
BY_LIGHTNING = textwrap.dedent(
    """
    import logging, sys
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    from pytorch_lightning import Trainer
    from pytorch_lightning.loggers import TensorBoardLogger
    from examples.curve_fitting.data import NoisyCurve
    from examples.curve_fitting.model import CurveRegressor
    from first_step import FirstStep
    trainer = Trainer(callbacks=[FirstStep()], logger=TensorBoardLogger(sys.argv[1]), default_root_dir=sys.argv[1],
                      enable_progress_bar=False, enable_model_summary=False, max_epochs=1, accelerator="cpu")
    trainer.fit(CurveRegressor(), datamodule=NoisyCurve())
    """
)


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "first_step.py").write_text(FIRST_STEP)
        (place / "by_lightning.py").write_text(BY_LIGHTNING)
        fit = ["-m", "unitrain", "fit", "--quiet", "--config", "examples/curve_fitting/settings.yaml",
               "--experiments_dir", f"{folder}/experiments", "--publish.repository", f"{folder}/triton_repo",
               "--trainer.callbacks", "[{class_path: first_step.FirstStep}]"]  # fmt: skip
        commands = {
            "python": ["-c", "pass"],
            "fit --help": ["-m", "unitrain", "fit", "--help"],
            "Lightning's first step": [f"{folder}/by_lightning.py", f"{folder}/logs"],
            "fit's first step, nothing published": [*fit, "--publish", "null"],
            "fit's first step": fit,
        }
        environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONWARNINGS": "ignore"}

        def run(arguments: list[str]) -> None:
            command = [sys.executable, *arguments]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

        times = take_turns(
            {name: lambda words=words: run(words) for name, words in commands.items()}, rounds=options.rounds
        )
    found = {
        name: {"s": summary(values), "of Lightning": ratio(values, times["Lightning's first step"])}
        for name, values in times.items()
    }
    if options.json:
        print(json.dumps(found))
        return 0
    for name, figures in found.items():
        print(line(name, figures["s"], "s") + f"   {figures['of Lightning']['median']:.2f} of Lightning")
    return 0


if __name__ == "__main__":
    sys.exit(main())
