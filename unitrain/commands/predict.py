"""`predict`: ask a served model, one sample or a stream, from any source to any sink."""

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

if TYPE_CHECKING:
    from unitrain.client import Client, ClientIO, ModelInfo


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0 good, 1 any sample failed, 128 + n ended by signal n."""
    options, io_options = parse_options(list(argv))

    from unitrain.client import Client

    with Client(options.url) as client:
        model = _find_model(client, options)
        if options.input == "golden" and options.version is None:
            # Golden samples belong to one version: a swap in between must not answer for it.
            model = client.model(options.model, model.versions[-1])
        return _Prediction(options, client, _open_io(options, model, io_options)).run()


class _Prediction:
    """One source's way through the model, with its report."""

    def __init__(self, options: argparse.Namespace, client: "Client", io: "ClientIO") -> None:
        from unitrain.client.stream_stats import Report

        self._options = options
        self._client = client
        self._io = io
        self._stop = threading.Event()
        self._signal = signal.SIGINT
        self._report = Report()
        self._failure: BaseException | None = None

    def run(self) -> int:
        """Stream, finalize whatever happened, report, and return the exit code."""
        with self._interruptible():
            try:
                self._stream()
            except BaseException as error:  # noqa: BLE001 - told after finalize and the report
                self._failure = error
            self._report.end()
            try:
                self._io.finalize()
            except Exception as error:  # noqa: BLE001 - the first failure is the one to tell
                self._failure = self._failure or error
            self._check_golden()
            if not isinstance(self._failure, BrokenPipeError):  # the reader has gone: nothing to tell
                self._tell()
        if isinstance(self._failure, OSError) and self._options.output not in (None, "-"):
            reason = self._failure.strerror or self._failure
            raise DataError(f"{self._options.output}: can't be written: {reason}") from self._failure
        if self._failure is not None and not isinstance(self._failure, KeyboardInterrupt):
            raise self._failure
        if self._stop.is_set() or self._failure is not None:
            return 128 + self._signal
        if self._report.first_error is not None:
            raise ClientError(
                f"{self._report.failed} of {self._report.samples} samples failed, the first: {self._report.first_error}"
            )
        return 0

    def _stream(self) -> None:
        from unitrain.commands._output import progress

        options, model = self._options, self._io.model
        results = self._client.stream(
            model.name,
            self._counted(),
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
        most = math.inf if options.max_errors is None else options.max_errors
        with progress(self._report, self._total()) as show, closing(results):
            for result in results:
                self._report.count(result)
                if result.outputs is not None:
                    self._io.decode(result.index, result.outputs, result.version)
                else:
                    self._io.failed(result.index, result.error)  # type: ignore[arg-type]
                    if self._report.failed > most:
                        raise ClientError(
                            f"gave up after {self._report.failed} of {self._report.samples} samples failed "
                            f"(--max-errors {most}), the last: {result.error}"
                        )
                show()

    def _counted(self) -> Iterator[Any]:
        count = self._options.count
        yield from itertools.islice(self._io.inputs(), None if count in (None, -1) else count)

    def _total(self) -> int | None:
        known = [n for n in (getattr(self._io, "total", None), self._options.count) if n not in (None, -1)]
        return min(known, default=None)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM take nothing more from the source and drain what is in flight; a second one ends at once."""

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
        from unitrain.client.io.client_io import GoldenIO

        if isinstance(self._io, GoldenIO):
            check = self._io.check()
            self._report.checks["golden"] = f"as published: {check.detail}" if check.passed else check.detail
            if check.passed is False:
                self._failure = self._failure or DataError(f"golden: {check.detail}")

    def _tell(self) -> None:
        text = self._report.table()
        if self._options.json:
            text = json.dumps(
                {"model": self._io.model.name, "url": self._io.model.url} | self._report.to_json()
            )
        print(text, file=sys.stderr if self._options.output == "-" else sys.stdout)


def _find_model(client: "Client", options: argparse.Namespace) -> "ModelInfo":
    if options.wait is None:
        return client.model(options.model, options.version)
    return client.wait(options.model, options.version, timeout_s=options.wait, note=_note)


def _open_io(options: argparse.Namespace, model: "ModelInfo", texts: dict[str, str]) -> "ClientIO":
    from unitrain.client.io.client_io import FileIO, GoldenIO, build_io
    from unitrain.client.io.sinks import open_sink

    if options.io is not None or options.config is not None:
        class_path, arguments, root = _named_class(options)
        from unitrain.class_paths import import_class

        return build_io(import_class(class_path, root), model, arguments, texts)
    if options.input == "golden":
        repository = _golden_repository(options)
        sink = None if options.output is None else open_sink(options.output, model, options.output_name)
        return GoldenIO(model, repository, model.version or model.versions[-1], sink)
    from unitrain.client.io.sources import Windows

    steps, hop = options.window_steps, options.hop_steps
    return FileIO(
        model,
        source=options.input,
        target=options.output,
        output_name=options.output_name,
        count=options.count,
        windows=None if steps is None else Windows(steps, hop or steps),
        resume=options.resume,
        note=_note,
    )


def _golden_repository(options: argparse.Namespace) -> Path:
    """Where the golden samples lie: as named, or as the `serve` of this user that answers at the url knows."""
    from unitrain.serving.server_registry import find_server

    if options.model_repository is not None:
        return options.model_repository  # type: ignore[no-any-return]
    server = find_server(options.url)
    if server is None:
        raise UsageError(
            "predict: --input golden needs --model-repository DIR, where the version's golden.npz lies"
        )
    return Path(server.repository)


def _named_class(options: argparse.Namespace) -> tuple[str, dict[str, Any], Path]:
    """The class path, its options from the settings, and the project root that it resolves from."""
    from unitrain.class_paths import project_root

    if options.config is None:
        return options.io, {}, project_root(Path.cwd())
    import yaml

    from unitrain.settings_renames import deprecation_line, rename_settings

    path = options.config
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    found: dict[str, str] = {}
    if isinstance(settings, dict):
        settings, found = rename_settings(settings)
    if found.get("client"):
        _note(deprecation_line(str(path), {"client": found["client"]}))
    section = settings.get("client_io") if isinstance(settings, dict) else None
    if options.io is None and not (isinstance(section, dict) and isinstance(section.get("class_path"), str)):
        raise SettingsError(
            f"{path}: expected a section `client_io: {{class_path: …, init_args: {{…}}}}`, got {section!r}"
        )
    section = section if isinstance(section, dict) else {}
    same = options.io in (None, section.get("class_path"))
    arguments = (section.get("init_args") or {}) if same else {}
    if not isinstance(arguments, dict):
        raise SettingsError(f"{path}: client_io.init_args must be a mapping, got {arguments!r}")
    return options.io or section["class_path"], arguments, project_root(path.parent)


def _note(text: str) -> None:
    from unitrain.terminal_output import note

    note(text)
