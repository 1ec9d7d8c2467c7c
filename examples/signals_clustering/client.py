"""Stream the held-out signals through the served model and keep the answers."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from examples.signals_clustering.basic_motions import load_basic_motions
from unitrain.client import ClientIO, ModelInfo


class SignalsIO(ClientIO):
    """Queries the codes and reconstructions of one part of the signals and keeps them.

    Args:
        model: description of the served model.
        part: TEST: the held-out signals; TRAIN: those that training and validation share.
        output: an .npz file to write at the end: `code`, `reconstruction`, `label` and `version`, a row
            a signal; empty: none.

    Attributes:
        signals: float32 [signal, channel, step], in the sensors' units, as sent.
        labels: int64 [signal], the classes' places in `examples.signals_clustering.basic_motions.CLASS_NAMES`.
        rows: places in `signals` of those that were answered.
        codes: their codes, float32 [code_size] each.
        reconstructions: float32 [channel, step] each, in the sensors' units.
        versions: that answered them.
    """

    def __init__(self, model: ModelInfo, part: Literal["TRAIN", "TEST"] = "TEST", output: str = "") -> None:
        super().__init__(model)
        self.signals, self.labels = load_basic_motions(part)
        self.rows: list[int] = []
        self.codes: list[NDArray[np.float32]] = []
        self.reconstructions: list[NDArray[np.float32]] = []
        self.versions: list[int] = []
        self._output = output

    def inputs(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for signal in self.signals:
            yield {"signals": signal}

    def decode(self, index: int, outputs: dict[str, NDArray[np.float32]], version: int) -> None:
        self.rows.append(index)
        self.codes.append(outputs["code"])
        self.reconstructions.append(outputs["reconstruction"])
        self.versions.append(version)

    def finalize(self) -> None:
        versions = ", ".join(map(str, sorted(set(self.versions)))) or "none"
        print(f"{len(self.rows)} of {len(self.signals)} signals answered, versions {versions}")
        if self._output and self.rows:
            np.savez(
                self._output,
                code=np.stack(self.codes),
                reconstruction=np.stack(self.reconstructions),
                label=self.labels[self.rows],
                version=np.array(self.versions, np.int64),
            )
            print(f"written {self._output}")
