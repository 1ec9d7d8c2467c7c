"""ClientIO, which brings samples to `predict` and takes the answers: a user's own class, or files."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from unitrain.client.input_validation import Array
from unitrain.client.io.samples import NamedSample, Note, Windows
from unitrain.client.io.sinks import Sink, open_sink
from unitrain.client.io.sources import open_samples
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, SettingsError


class ClientIO:
    """Samples in, answers out, for `predict --io CLASS`. Subclass it; numpy is all it needs.

    Options are the further arguments of `__init__`: `--io.noise 0.2` sets `noise: float`.

    Attributes:
        model: the model's metadata.
        total: number of samples, or None if it is unknown.

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
        """Yield samples: arrays by input name, one row each, without a batch axis.

        It may be endless. A separate thread reads it. A `ClientError` in place of a sample becomes that
        sample's error.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `inputs`")

    def decode(self, index: int, outputs: dict[str, Array], version: int) -> None:
        """Take one sample's answer; called in the samples' order.

        Args:
            index: place of the sample, from 0.
            outputs: arrays by output name, one row each, without a batch axis.
            version: model version that answered.
        """

    def failed(self, index: int, error: ClientError) -> None:
        """Take one sample's error in place of its answer; called in the samples' order."""

    def finalize(self) -> None:
        """Write and close what is open. Called once, also after an error or Ctrl-C."""


class FileIO(ClientIO):
    """Sources and sinks that `--input` and `--output` name: files, folders, standard streams, random samples.

    Attributes:
        first_index: index of the first sample to send. A resumed output has the samples before it.
        total: number of samples to send, or None if it is unknown.
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
        # The source first: an error in it leaves an older output as it was.
        samples = open_samples(source, model, count, note, windows=windows)
        self._sink: Sink | None = None
        if target is not None:
            self._sink = open_sink(target, model, output_name, resume=resume)
        self.first_index = self._sink.done if self._sink is not None else 0
        if self.first_index:
            note(f"{target}: continues after the {self.first_index} existing samples")
        self._samples = samples.cut(self.first_index, None)
        self.total = self._samples.total
        self._names: dict[int, str] = {}

    def inputs(self) -> Iterator[Mapping[str, Any] | ClientError]:
        for index, sample in enumerate(self._samples.rows, self.first_index):
            if isinstance(sample, NamedSample):
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


def build_io(kind: type, model: ModelInfo, options: Mapping[str, Any], texts: Mapping[str, str]) -> ClientIO:
    """Make a user's ClientIO, after checking its options against its signature.

    Args:
        kind: the user's class.
        model: metadata, the first argument of the class.
        options: options of a settings file, which have types.
        texts: options of the command line, converted by the signature. They override those of the file.

    Raises:
        SettingsError: it is no ClientIO, or an option is unknown, missing or of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    where = f"{kind.__module__}.{kind.__qualname__}"
    methods = ("inputs", "decode", "finalize")
    if not all(callable(getattr(kind, name, None)) for name in methods):
        raise SettingsError(f"--io: {where} must be a unitrain.client.ClientIO with {', '.join(methods)}")
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
