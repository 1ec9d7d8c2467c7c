"""Golden samples as a test of a live server: its answers are compared with the published ones.

`predict --input golden` and `check_served` share `GoldenIO`, and with it the repository's reader, comparison
and tolerances, which `models verify` also uses.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.client.client import Client
from unitrain.client.input_validation import Array
from unitrain.client.io.client_io import ClientIO
from unitrain.client.io.numpy_files import array_rows
from unitrain.client.io.sinks import Sink
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError, RepositoryError, UnitrainError
from unitrain.repository.layout import GOLDEN_NAME
from unitrain.repository.verify import Check, compare_golden, read_golden, tolerance_of

_POLL_S = 0.2
_RETRY_FOR_S = 10.0


class GoldenIO(ClientIO):
    """A version's golden samples, and their comparison with the answers, within the version's tolerances.

    Args:
        model: metadata of the served model.
        version_dir: folder of the version in the model repository.
        sink: sink that also receives the answers.

    Attributes:
        total: number of golden samples.

    Raises:
        DataError: the version has no golden samples, or they can't be read or do not fit the model.
    """

    def __init__(self, model: ModelInfo, version_dir: Path, sink: Sink | None = None) -> None:
        super().__init__(model)
        self._version_dir = version_dir
        try:
            golden = read_golden(version_dir)
        except RepositoryError as error:
            raise DataError(str(error)) from error
        if golden is None:
            raise DataError(
                f"{version_dir / GOLDEN_NAME}: can't be read: there is no such file; publish with "
                "publish.golden.samples above 0"
            )
        inputs, self._expected = golden
        samples = array_rows(inputs, model, f"golden samples of {model.name} version {version_dir.name}")
        self._samples, self.total = samples.rows, samples.total
        self._sink = sink
        self._answers: list[dict[str, Array]] = []
        self._first_error: ClientError | None = None

    def inputs(self) -> Iterator[Mapping[str, Any] | ClientError]:
        return self._samples

    def decode(self, index: int, outputs: dict[str, Array], version: int) -> None:
        self._answers.append(outputs)
        if self._sink is not None:
            self._sink.write(index, outputs, version)

    def failed(self, index: int, error: ClientError) -> None:
        self._first_error = self._first_error or error
        if self._sink is not None:
            self._sink.write_error(index, error)

    def finalize(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def check(self, name: str = "golden") -> Check:
        """Compare the answers with the published ones; `passed` is None if samples were not sent.

        Args:
            name: name of the check in reports.
        """
        total = self.total or 0
        if len(self._answers) < total or not self._answers:
            passed = None if self._first_error is None else False
            reason = "" if self._first_error is None else f", the first error: {self._first_error}"
            return Check(name, passed, f"{len(self._answers)} of {total} samples were answered{reason}")
        return compare_golden(
            name, self._expected, self._joined(), tolerance_of(self._version_dir), self.model.url
        )

    def _joined(self) -> dict[str, Array]:
        """Return the answers by output, with rows first if the model has a batch axis."""
        if not self.model.signature.batched:
            return self._answers[0]
        joined = {}
        for name, want in self._expected.items():
            rows = [answer[name] for answer in self._answers if name in answer]
            if len(rows) == len(self._answers) and len({row.shape for row in rows}) == 1:
                joined[name] = np.stack(rows)
            elif rows:  # several shapes: an empty array fails the comparison
                joined[name] = np.empty((len(rows), 0), want.dtype)
        return joined


def check_served(version_dir: Path, model: str, version: int, url: str, *, wait_s: float = 0.0) -> Check:
    """Check that a live server answers a version's golden samples as published.

    A version that it does not serve is not checked: `passed` is None.

    Args:
        version_dir: folder of the version in the model repository.
        model: name of the served model.
        version: number of the version.
        url: `host:port` of the server's gRPC endpoint.
        wait_s: seconds to wait until the server has the version; if above 0, its absence is a failure.
    """
    name = "served"
    try:
        with Client(url) as client:
            if not _wait_until_served(client, model, version, wait_s):
                waited = f" after {wait_s:g} s" if wait_s else ""
                passed = False if wait_s else None
                return Check(name, passed, f"{url} does not serve it{waited}")
            if not (version_dir / GOLDEN_NAME).is_file():
                return Check(name, passed=None, detail="it has no golden samples")
            golden = GoldenIO(client.model(model, version), version_dir)
            for result in client.stream(
                model, golden.inputs(), version=version, retry_for_s=_RETRY_FOR_S, allow_nan=True
            ):
                if result.outputs is not None:
                    golden.decode(result.index, result.outputs, result.version)
                elif result.error is not None:
                    golden.failed(result.index, result.error)
            return golden.check(name)
    except UnitrainError as error:
        return Check(name, passed=False, detail=str(error))


def _wait_until_served(client: Client, model: str, version: int, wait_s: float) -> bool:
    """Return True once the server has the version, False after `wait_s` seconds."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            served = version in client.models().get(model, ())
        except UnitrainError:
            if time.monotonic() >= deadline_s:
                raise
            served = False
        if served or time.monotonic() >= deadline_s:
            return served
        time.sleep(_POLL_S)
