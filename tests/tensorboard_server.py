"""A real TensorBoard on a free port, and what its Projector's page would ask of it."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from time_limits import LIMIT_S, wait_until


class TensorBoard:
    """A TensorBoard over `log_dir`, which has been asked for its runs once, so its configs are cached."""

    def __init__(self, log_dir: Path, *options: str) -> None:
        self.log_dir = log_dir
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", log_dir, "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--reload_interval", "1", *options], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        found = None
        for line in self.process.stderr:
            found = re.search(r"^TensorBoard .* at (http://\S+?)/? ", line)
            if found:
                break
        assert found, "TensorBoard did not start"
        self.url = found[1]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(LIMIT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def get(self, route: str, **query: object) -> bytes:
        """The answer to one of the page's requests; HTTPError where it is not 200."""
        url = f"{self.url}/data/plugin/projector/{route}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:  # noqa: S310 - our own server's http
            return answer.read()

    def post(self, route: str, question: object) -> Any:
        """The answer of the HParams plugin."""
        request = urllib.request.Request(  # noqa: S310 - our own server's http
            f"{self.url}/data/plugin/hparams/{route}",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310 - likewise
            return json.load(answer)

    def runs(self) -> list[str]:
        return json.loads(self.get("runs"))

    def wait_for(self, snapshot_dir: Path) -> str:
        """The name of the run that a snapshot is, once the server lists it."""
        run = str(snapshot_dir.relative_to(self.log_dir))
        wait_until(lambda: run in self.runs(), f"{run} was not listed")
        return run

    def info(self, run: str) -> dict[str, dict[str, Any]]:
        """The embeddings of a run by their tensors' names."""
        return {info["tensorName"]: info for info in json.loads(self.get("info", run=run))["embeddings"]}

    def tensor(self, run: str, name: str) -> np.ndarray:
        """The points as the page reads them."""
        values = np.frombuffer(self.get("tensor", run=run, name=name, num_rows=100_000), "<f4")
        return values.reshape(self.info(run)[name]["tensorShape"])

    def labels(self, run: str, name: str) -> dict[str, list[str]]:
        """The labels by column, parsed as the page does: blank lines passed over, a header if there is a tab."""
        text = self.get("metadata", run=run, name=name, num_rows=100_000).decode()
        lines = [line.split("\t") for line in text.split("\n") if line.strip()]
        header = lines.pop(0) if len(lines[0]) > 1 else ["label"]
        return {column: [line[i] for line in lines] for i, column in enumerate(header)}
