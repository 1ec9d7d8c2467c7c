"""`predict`: query a served model with one sample or a stream, from any source to any sink."""

import argparse
import itertools
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unitrain.commands._predict_options import parse_options
from unitrain.errors import ClientError, DataError, SettingsError, UsageError
from unitrain.terminal_output import note

if TYPE_CHECKING:
    from unitrain.client import Client, ClientIO, ModelInfo


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0 good, 1 any sample failed, 128 + n ended by signal n."""
    options, io_options = parse_options(list(argv))

    from unitrain.client import Client

    with Client(options.url) as client:
        model = _find_model(client, options)
        if options.input == "golden" and options.version is None:
            # Golden samples belong to one version: after a swap, another version must not answer.
            model = client.model(options.model, model.versions[-1])
        return _Prediction(options, client, _open_io(options, model, io_options)).run()


class _Prediction:
    """One source's samples, sent to the model and reported."""

    def __init__(self, options: argparse.Namespace, client: "Client", io: "ClientIO") -> None:
        from unitrain.client.stream_stats import StreamStatistics

        self._options = options
        self._client = client
        self._io = io
        self._stop = threading.Event()
        self._signal = signal.SIGINT
        self._statistics = StreamStatistics()
        self._failure: BaseException | None = None

    def run(self) -> int:
        """Stream, finalize in any case, print the report, and return the exit code."""
        with self._interruptible():
            try:
                self._stream()
            except BaseException as error:  # noqa: BLE001 - raised after finalize and the report
                self._failure = error
            self._statistics.end()
            try:
                self._io.finalize()
            except Exception as error:  # noqa: BLE001 - the first failure is the one to raise
                self._failure = self._failure or error
            self._check_golden()
            if not isinstance(self._failure, BrokenPipeError):  # nothing reads the report
                self._print_report()
        if isinstance(self._failure, OSError) and self._options.output not in (None, "-"):
            reason = self._failure.strerror or self._failure
            raise DataError(f"{self._options.output}: can't be written: {reason}") from self._failure
        if self._failure is not None and not isinstance(self._failure, KeyboardInterrupt):
            raise self._failure
        if self._stop.is_set() or self._failure is not None:
            return 128 + self._signal
        if self._statistics.first_error is not None:
            raise ClientError(
                f"{self._statistics.failed} of {self._statistics.samples} samples failed, "
                f"the first: {self._statistics.first_error}"
            )
        return 0

    def _stream(self) -> None:
        from unitrain.commands._output import progress

        options, model, statistics = self._options, self._io.model, self._statistics
        results = self._client.stream(
            model.name,
            self._samples(),
            version=model.version,
            batch_rows=options.batch_rows,
            window=options.window,
            timeout_s=options.timeout,
            retry_for_s=options.retry_for,
            allow_nan=options.allow_nan or options.input == "golden",
            shared_memory=options.shm,
            first_index=getattr(self._io, "first_index", 0),
            stop=self._stop,
        )
        max_errors = math.inf if options.max_errors is None else options.max_errors
        with progress(statistics, self._total()) as show, closing(results):
            for result in results:
                statistics.count(result)
                if result.outputs is not None:
                    self._io.decode(result.index, result.outputs, result.version)
                else:
                    self._io.failed(result.index, result.error)  # type: ignore[arg-type]
                    if statistics.failed > max_errors:
                        raise ClientError(
                            f"gave up after {statistics.failed} of {statistics.samples} samples failed "
                            f"(--max-errors {max_errors}), the last: {result.error}"
                        )
                show()

    def _samples(self) -> Iterator[Any]:
        count = self._options.count
        yield from itertools.islice(self._io.inputs(), None if count in (None, -1) else count)

    def _total(self) -> int | None:
        known = [n for n in (getattr(self._io, "total", None), self._options.count) if n not in (None, -1)]
        return min(known, default=None)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """On Ctrl-C or SIGTERM, read no more samples and await those in flight; on a second signal, end at once."""

        def interrupt(number: int, _frame: object) -> None:
            self._signal = signal.Signals(number)
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._stop.set()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _check_golden(self) -> None:
        from unitrain.client.golden import GoldenIO

        if isinstance(self._io, GoldenIO):
            check = self._io.check()
            detail = f"as published: {check.detail}" if check.passed else check.detail
            self._statistics.checks[check.name] = detail
            if check.passed is False:
                self._failure = self._failure or DataError(f"golden: {check.detail}")

    def _print_report(self) -> None:
        text = self._statistics.table()
        if self._options.json:
            model = self._io.model
            text = json.dumps({"model": model.name, "url": model.url} | self._statistics.to_json())
        print(text, file=sys.stderr if self._options.output == "-" else sys.stdout)


def _find_model(client: "Client", options: argparse.Namespace) -> "ModelInfo":
    if options.wait is None:
        return client.model(options.model, options.version)
    return client.wait(options.model, options.version, timeout_s=options.wait, note=note)


def _open_io(options: argparse.Namespace, model: "ModelInfo", texts: dict[str, str]) -> "ClientIO":
    from unitrain.client.io.client_io import FileIO, build_io
    from unitrain.client.io.samples import Windows
    from unitrain.client.io.sinks import open_sink

    if options.io is not None or options.config is not None:
        class_path, arguments, root = _named_class(options)
        from unitrain.class_paths import import_class

        return build_io(import_class(class_path, root), model, arguments, texts)
    if options.input == "golden":
        from unitrain.client.golden import GoldenIO

        version_dir = _repository(options) / model.name / str(model.version or model.versions[-1])
        sink = None if options.output is None else open_sink(options.output, model, options.output_name)
        return GoldenIO(model, version_dir, sink)
    steps, hop = options.window_steps, options.hop_steps
    return FileIO(
        model,
        source=options.input,
        target=options.output,
        output_name=options.output_name,
        count=options.count,
        windows=None if steps is None else Windows(steps, hop or steps),
        resume=options.resume,
        note=note,
    )


def _repository(options: argparse.Namespace) -> Path:
    """Return the model repository with the golden samples: the named one, or that of this user's server at the url."""
    from unitrain.serving.server_registry import find_server

    if options.model_repository is not None:
        return options.model_repository  # type: ignore[no-any-return]
    server = find_server(options.url)
    if server is None:
        raise UsageError(
            "predict: --input golden needs --model-repository DIR, the repository with the version's golden.npz"
        )
    return Path(server.repository)


def _named_class(options: argparse.Namespace) -> tuple[str, dict[str, Any], Path]:
    """Return a ClientIO's class path, its options from the settings, and the project root for its import."""
    from unitrain.class_paths import project_root

    if options.config is None:
        return options.io, {}, project_root(Path.cwd())
    path = options.config
    section = _client_section(path)
    if options.io is None and not (isinstance(section, dict) and isinstance(section.get("class_path"), str)):
        raise SettingsError(
            f"{path}: expected a section `client_io: {{class_path: …, init_args: {{…}}}}`, got {section!r}"
        )
    section = section if isinstance(section, dict) else {}
    same_class = options.io in (None, section.get("class_path"))
    arguments = (section.get("init_args") or {}) if same_class else {}
    if not isinstance(arguments, dict):
        raise SettingsError(f"{path}: client_io.init_args must be a mapping, got {arguments!r}")
    return options.io or section["class_path"], arguments, project_root(path.parent)


def _client_section(path: Path) -> Any:
    """Return a settings file's section `client_io`; None if it has none."""
    import yaml

    from unitrain.settings_renames import deprecation_line, rename_settings
    from unitrain.terminal_output import note

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        return None
    settings, found = rename_settings(settings)
    if found.get("client"):
        note(deprecation_line(str(path), {"client": found["client"]}))
    return settings.get("client_io")
