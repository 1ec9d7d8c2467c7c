"""What brings samples to a model and takes its answers; a person's own class may take its place."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.io.numpy_files import array_rows
from unitrain.client.io.sinks import Sink, open_sink
from unitrain.client.io.sources import Named, Note, Windows, open_samples
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError, RepositoryError, SettingsError
from unitrain.repository.layout import GOLDEN_NAME
from unitrain.repository.verify import Check, compare_golden, read_golden, tolerance_of


class ClientIO:
    """Samples in, answers out, for `predict --io CLASS`. Subclass it; numpy is all it needs.

    Options are the further arguments of `__init__`: `--io.noise 0.2` fills `noise: float`.

    Attributes:
        model: what the server says of the model.
        total: samples there will be; None where nobody knows.

    Example:
        >>> class Doubles(ClientIO):
        ...     def __init__(self, model, rows: int = 3):
        ...         super().__init__(model)
        ...         self.rows = rows
        ...
        ...     def inputs(self):
        ...         for i in range(self.rows):
        ...             yield {"x": np.full(3, i, np.float32)}
        ...
        ...     def decode(self, index, outputs, version):
        ...         print(index, outputs["y"], version)
    """

    total: int | None = None

    def __init__(self, model: ModelInfo) -> None:
        self.model = model

    def inputs(self) -> Iterator[Mapping[str, Any] | ClientError]:
        """Samples by input name, one row each (no batch axis); endless is fine. Read by a thread of its own.

        A `ClientError` in place of a sample becomes that sample's error.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `inputs`")

    def decode(self, index: int, outputs: dict[str, Array], version: int) -> None:
        """Take one sample's answer; called in the samples' order.

        Args:
            index: the sample's place, from 0.
            outputs: by output name, one row (no batch axis).
            version: that answered.
        """

    def failed(self, index: int, error: ClientError) -> None:
        """Take one sample's error in place of its answer, in the samples' order."""

    def finalize(self) -> None:
        """Close and write what is left; called once, on errors and Ctrl-C too."""


class FileIO(ClientIO):
    """Files, folders, standard input and output, or random samples: what `--input` and `--output` name.

    Attributes:
        first_index: of the first sample it gives: those before it were there when its output was resumed.
        total: samples it gives; None where nobody knows.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        source: str,
        target: str | None,
        output_name: str | None = None,
        count: int | None = None,
        windows: Windows | None = None,
        resume: bool = False,
        note: Note,
    ) -> None:
        super().__init__(model)
        # The source first: a wrong one leaves an older output as it was.
        samples = open_samples(source, model, count, note, windows=windows)
        self._sink: Sink | None = None
        if target is not None:
            self._sink = open_sink(target, model, output_name, resume=resume)
        self.first_index = self._sink.done if self._sink is not None else 0
        if self.first_index:
            note(f"{target}: goes on after the {self.first_index} samples that are there")
        self._samples = samples.cut(self.first_index, None)
        self.total = self._samples.total
        self._names: dict[int, str] = {}

    def inputs(self) -> Iterator[Mapping[str, Any] | ClientError]:
        for index, sample in enumerate(self._samples.rows, self.first_index):
            if isinstance(sample, Named):
                self._names[index] = sample.name
            yield sample

    def decode(self, index: int, outputs: dict[str, Array], version: int) -> None:
        name = self._names.pop(index, None)
        if self._sink is not None:
            self._sink.write(index, outputs, version, name)

    def failed(self, index: int, error: ClientError) -> None:
        name = self._names.pop(index, None)
        if self._sink is not None:
            self._sink.write_error(index, error, name)

    def finalize(self) -> None:
        if self._sink is not None:
            self._sink.close()


class GoldenIO(ClientIO):
    """A version's golden samples; its answers are compared with the published ones, within its own tolerances.

    Attributes:
        total: samples there are.
    """

    def __init__(self, model: ModelInfo, repository: Path, version: int, sink: Sink | None = None) -> None:
        super().__init__(model)
        self._version_dir = repository / model.name / str(version)
        where = f"golden samples of {model.name} version {version}"
        try:
            golden = read_golden(self._version_dir)
        except RepositoryError as error:
            raise DataError(str(error)) from error
        if golden is None:
            raise DataError(
                f"{self._version_dir / GOLDEN_NAME}: can't be read: there is no such file; publish with "
                "publish.golden.samples above 0"
            )
        inputs, self._expected = golden
        self._samples, self.total = array_rows(inputs, model, where)
        self._sink = sink
        self._answers: list[dict[str, Array]] = []
        self._failed = 0

    def inputs(self) -> Iterator[Mapping[str, Any] | ClientError]:
        return self._samples

    def decode(self, index: int, outputs: dict[str, Array], version: int) -> None:
        self._answers.append(outputs)
        if self._sink is not None:
            self._sink.write(index, outputs, version)

    def failed(self, index: int, error: ClientError) -> None:
        self._failed += 1
        if self._sink is not None:
            self._sink.write_error(index, error)

    def finalize(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def check(self) -> Check:
        """Compare the answers with the published ones; None passed where samples were not sent."""
        total = self.total or 0
        if len(self._answers) < total or not self._answers:
            passed = False if self._failed else None
            return Check("golden", passed, f"{len(self._answers)} of {total} samples were answered")
        return compare_golden(
            "golden", self._expected, self._joined(), tolerance_of(self._version_dir), self.model.url
        )

    def _joined(self) -> dict[str, Array]:
        """The answers by output, with rows first where the model has them."""
        if not self.model.signature.batched:
            return self._answers[0]
        joined = {}
        for name, want in self._expected.items():
            rows = [answer[name] for answer in self._answers if name in answer]
            if len(rows) == len(self._answers) and len({row.shape for row in rows}) == 1:
                joined[name] = np.stack(rows)
            elif rows:  # of several shapes: they can't be what was published
                joined[name] = np.empty((len(rows), 0), want.dtype)
        return joined


def build_io(kind: type, model: ModelInfo, options: Mapping[str, Any], texts: Mapping[str, str]) -> ClientIO:
    """A person's ClientIO, its options checked against its signature.

    Args:
        kind: the class.
        model: handed to it first.
        options: from a settings file, typed there.
        texts: from the command line, typed by the signature; they win.

    Raises:
        SettingsError: it is no ClientIO, or an option is unknown, missing or of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    where = f"{kind.__module__}.{kind.__qualname__}"
    wanted = ("inputs", "decode", "finalize")
    if not all(callable(getattr(kind, name, None)) for name in wanted):
        raise SettingsError(f"--io: {where} must be a unitrain.client.ClientIO with {', '.join(wanted)}")
    if not list(inspect.signature(kind).parameters):
        raise SettingsError(f"--io: {where}.__init__ must take the model first")
    parser = ArgumentParser(exit_on_error=False, parser_mode="yaml")
    parser.add_class_arguments(kind, "io", skip={1}, fail_untyped=False, sub_configs=False)
    known = [name.removeprefix("io.") for name in parser.get_defaults().keys() if name.startswith("io.")]  # noqa: SIM118
    for name in (*options, *texts):
        if name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise SettingsError(f"--io: {where} has no option {name}; {has}")
    try:
        config = parser.parse_object({"io": dict(options)}) if options else None
        arguments = [f"--io.{name}={value}" for name, value in texts.items()]
        parsed = parser.parse_args(arguments, namespace=config)
    except (ArgumentError, TypeError, ValueError) as error:
        raise SettingsError(f"--io: {where}: {' '.join(str(error).split())}") from error
    values = dict(parsed.io.items()) if "io" in parsed else {}
    io = kind(model, **values)
    if not isinstance(io, ClientIO) and not hasattr(io, "failed"):
        io.failed = lambda _index, _error: None
    return io  # type: ignore[no-any-return]
