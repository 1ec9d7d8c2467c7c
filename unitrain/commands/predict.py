"""`predict`: ask a served model, one sample or a stream, from any source to any sink."""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unitrain.commands.arguments import ArgumentParser, parse
from unitrain.errors import DataError, SettingsError, UsageError

if TYPE_CHECKING:
    from unitrain.client import Client, ClientIO, ModelInfo
    from unitrain.client.report import Report

INTERRUPTED = 130


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code: 0 good, 1 any sample failed, 130 ended by Ctrl-C."""
    words, io_options = _take_io_options(list(argv))
    options = parse(_parser(), words)
    _check(options, io_options)

    from unitrain.client import Client

    with Client(options.url) as client:
        model = client.model(options.model, options.version)
        if options.input == "golden" and options.version is None:
            # Golden samples belong to one version: a swap in between must not answer for it.
            model = client.model(options.model, model.versions[-1])
        return _Prediction(options, client, _open_io(options, model, io_options)).run()


class _Prediction:
    """One source's way through the model, with its report."""

    def __init__(self, options: argparse.Namespace, client: "Client", io: "ClientIO") -> None:
        from unitrain.client.report import Report

        self._options = options
        self._client = client
        self._io = io
        self._stop = threading.Event()
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
            return INTERRUPTED
        if self._report.first_error is not None:
            failed, samples = self._report.failed, self._report.samples
            print(
                f"error: {failed} of {samples} samples failed, the first: {self._report.first_error}",
                file=sys.stderr,
            )
            return 1
        return 0

    def _stream(self) -> None:
        options, model = self._options, self._io.model
        results = self._client.stream(
            model.name,
            self._counted(),
            version=model.version,
            batch_rows=options.batch_rows,
            window=options.window,
            timeout_s=options.timeout,
            retry_for_s=options.retry_for,
            allow_nan=options.allow_nan,
            stop=self._stop,
        )
        with _progress(self._report, options.count) as show:
            for result in results:
                self._report.count(result)
                if result.outputs is not None:
                    self._io.decode(result.index, result.outputs, result.version)
                else:
                    self._io.failed(result.index, result.error)  # type: ignore[arg-type]
                show()

    def _counted(self) -> Iterator[Any]:
        count = self._options.count
        for index, sample in enumerate(self._io.inputs()):
            if count is not None and 0 <= count <= index:
                return
            yield sample

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C takes nothing more from the source and drains what is in flight; a second one ends at once."""

        def interrupt(_signal: int, _frame: object) -> None:
            if self._stop.is_set():
                raise KeyboardInterrupt
            self._stop.set()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _check_golden(self) -> None:
        from unitrain.client.io import GoldenIO, golden_verdict

        if isinstance(self._io, GoldenIO):
            verdict = golden_verdict(self._io)
            self._report.checks["golden"] = (
                f"{self._io.checked - self._io.wrong} of {self._io.checked} as published, "
                f"largest difference {self._io.largest:.3g}"
            )
            self._failure = self._failure or verdict

    def _tell(self) -> None:
        text = self._report.table()
        if self._options.json:
            text = json.dumps(
                {"model": self._io.model.name, "url": self._io.model.url} | self._report.to_json()
            )
        print(text, file=sys.stderr if self._options.output == "-" else sys.stdout)


def _parser() -> ArgumentParser:
    parser = ArgumentParser("predict", "Ask a served model; all else is known from the server's metadata.")
    add = parser.add_argument
    add("model", metavar="MODEL", help="its name on the server")
    add("--url", default="127.0.0.1:8001", help="host:port of Triton's gRPC endpoint")
    add("--version", type=int, help="to be asked (default: the newest)")
    add("--input", help=".csv, .npy, .npz or .jsonl file; - (standard input, jsonl or csv); golden; random")
    add(
        "--output",
        help=".csv, .npy, .npz or .jsonl file; projector:DIR (for TensorBoard); - (standard output, jsonl) "
        "(default: none; - if --input is -)",
    )
    add("--output-name", help="the output that a .npy file holds, where the model has more than one")
    add("--count", type=int, help="samples at most; -1: endless, a file starting again at its end")
    add(
        "--batch-rows", type=int, help="rows a request (default: what is at hand, up to the server's maximum)"
    )
    add("--window", type=int, default=16, help="requests in flight at most")
    add("--timeout", type=float, default=30.0, metavar="S", help="seconds for the answer to one request")
    add(
        "--retry-for",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that a server may be away meanwhile",
    )
    add("--allow-nan", action="store_true", help="send NaN rather than refuse it")
    add(
        "--io",
        metavar="CLASS",
        help="class path of a ClientIO in place of --input and --output; --io.OPTION V",
    )
    add("--config", type=Path, metavar="F", help="settings file whose `client` section names the ClientIO")
    add("--model-repository", type=Path, metavar="DIR", help="for --input golden")
    add("--json", action="store_true", help="report as one JSON object")
    return parser


def _take_io_options(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """The words without `--io.OPTION V`, and those options."""
    rest: list[str] = []
    taken: dict[str, str] = {}
    queue = iter(words)
    for word in queue:
        if not word.startswith("--io."):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--io.").partition("=")
        if not equals:
            following = next(queue, None)
            if following is None:
                raise UsageError(f"predict: {word} needs a value")
            value = following
        taken[name.replace("-", "_")] = value
    return rest, taken


def _check(options: argparse.Namespace, io_options: dict[str, str]) -> None:
    _check_source_and_sink(options, io_options)
    for flag, value, least in (
        ("count", options.count, -1),
        ("window", options.window, 1),
        ("batch-rows", options.batch_rows, 1),
        ("version", options.version, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"--{flag}: expected at least {least}, got {value}")
    if not 0 < options.timeout <= threading.TIMEOUT_MAX:
        raise UsageError(f"--timeout: expected seconds above 0, got {options.timeout}")
    if not 0 <= options.retry_for <= threading.TIMEOUT_MAX:
        raise UsageError(f"--retry-for: expected seconds from 0, got {options.retry_for}")


def _check_source_and_sink(options: argparse.Namespace, io_options: dict[str, str]) -> None:
    own = options.io is not None or options.config is not None
    if own and (options.input or options.output):
        raise UsageError(
            "predict: --io and --config bring their own source and sink; leave --input and --output out"
        )
    if io_options and not own:
        raise UsageError(f"predict: --io.{next(iter(io_options))} needs --io CLASS or --config F")
    if own:
        return
    if options.input is None:
        raise UsageError(
            "predict: --input is missing; it takes a file, `-`, `golden` or `random` (or use --io CLASS)"
        )
    if options.input == "golden" and options.model_repository is None:
        raise UsageError(
            "predict: --input golden needs --model-repository DIR, where the version's golden.npz lies"
        )
    if options.input == "-" and options.output is None:
        options.output = "-"
    if options.output not in (None, "-") and Path(options.output).resolve() == Path(options.input).resolve():
        raise UsageError(
            f"predict: --output would overwrite its own --input, {options.input}; name another file"
        )
    from unitrain.client.sources import check_source

    check_source(options.input)


def _open_io(options: argparse.Namespace, model: "ModelInfo", texts: dict[str, str]) -> "ClientIO":
    from unitrain.client.io import FileIO, GoldenIO, build_io
    from unitrain.client.sinks import open_sink

    if options.io is not None or options.config is not None:
        class_path, arguments, root = _named_class(options)
        from unitrain.project import import_class

        return build_io(import_class(class_path, root), model, arguments, texts)
    if options.input == "golden":
        sink = None if options.output is None else open_sink(options.output, model, options.output_name)
        return GoldenIO(model, options.model_repository, model.version or model.versions[-1], sink)
    return FileIO(
        model,
        source=options.input,
        target=options.output,
        output_name=options.output_name,
        count=options.count,
        note=_note,
    )


def _named_class(options: argparse.Namespace) -> tuple[str, dict[str, Any], Path]:
    """The class path, its options from the settings, and the project root that it resolves from."""
    from unitrain.project import project_root

    if options.config is None:
        return options.io, {}, project_root(Path.cwd())
    import yaml

    path = options.config
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    section = settings.get("client") if isinstance(settings, dict) else None
    if options.io is None and not (isinstance(section, dict) and isinstance(section.get("class_path"), str)):
        raise SettingsError(
            f"{path}: expected a section `client: {{class_path: …, init_args: {{…}}}}`, got {section!r}"
        )
    section = section if isinstance(section, dict) else {}
    same = options.io in (None, section.get("class_path"))
    arguments = (section.get("init_args") or {}) if same else {}
    if not isinstance(arguments, dict):
        raise SettingsError(f"{path}: client.init_args must be a mapping, got {arguments!r}")
    return options.io or section["class_path"], arguments, project_root(path.parent)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def _progress(report: "Report", count: int | None) -> Iterator[Any]:
    """A function that shows how far the report is, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = None if count in (None, -1) else count
    columns = (
        TextColumn("samples"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=5, transient=True) as bar:
        task = bar.add_task("samples", total=total, rate="")
        next_s = 0.0

        def show() -> None:
            nonlocal next_s
            # Asking the clock costs far less than the bar does.
            seconds = report.seconds
            if seconds >= next_s:
                next_s = seconds + 0.2
                bar.update(
                    task, completed=report.samples, rate=f"{report.samples / max(seconds, 1e-9):,.0f}/s"
                )

        yield show
