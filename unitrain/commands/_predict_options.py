"""Options of `predict`, and the check of their combinations."""

import argparse
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unitrain.commands._parser import ArgumentParser, parse
from unitrain.errors import UsageError


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the options, and those of the ClientIO (`--io.OPTION VALUE`) as text.

    Raises:
        UsageError: an option is unknown or wrong, or options contradict each other.
    """
    words, io_options = _take_io_options(argv)
    options = parse(_parser(), words)
    _check(options, io_options)
    return options, io_options


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "predict",
        "Query a served model with samples from any source. All else is known from the server's metadata.",
        usage="%(prog)s MODEL --input SOURCE [--output SINK] [options]\n"
        "       %(prog)s MODEL --io CLASS [--io.OPTION VALUE ...] [options]",
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model on the server")
    _add_source_and_sink(parser.add_argument_group("source and sink").add_argument)
    _add_server(parser.add_argument_group("server").add_argument)
    _add_requests(parser.add_argument_group("requests").add_argument)
    _add_failures(parser.add_argument_group("failures").add_argument)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    return parser


def _add_source_and_sink(add: Callable[..., Any]) -> None:
    add(
        "--input",
        metavar="SOURCE",
        help=".csv, .npy, .npz or .jsonl file; folder or quoted pattern of images or arrays; `-`: standard input "
        "(jsonl or csv); `golden`: the version's golden samples; `random`: noise",
    )
    add(
        "--output",
        metavar="SINK",
        help=".csv, .npy, .npz or .jsonl file; folder (DIR/), one file a sample; `projector:DIR`, for TensorBoard; "
        "`-`: standard output (jsonl) (default: none, or `-` if --input is `-`)",
    )
    add("--output-name", metavar="NAME", help="output that a .npy file holds, if the model has several")
    add("--resume", action="store_true", help="continue after the samples that --output has")
    add("--count", type=int, metavar="N", help="maximum number of samples; -1: endless, a file is repeated")
    add("--window-steps", type=int, metavar="N", help="cut windows of N steps out of --input, a long signal")
    add(
        "--hop-steps", type=int, metavar="N", help="steps between starts of windows (default: --window-steps)"
    )
    add("--io", metavar="CLASS", help="class path of a ClientIO, instead of --input and --output")
    add("--io.OPTION", dest="io_option", metavar="VALUE", help="option of the ClientIO")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="settings file with a `client_io` section, instead of --io",
    )
    add("--model-repository", type=Path, metavar="DIR", help="model repository with the golden samples")


def _add_server(add: Callable[..., Any]) -> None:
    add("--url", metavar="HOST:PORT", default="127.0.0.1:8001", help="Triton's gRPC endpoint")
    add("--version", type=int, metavar="N", help="model version (default: the newest)")
    add(
        "--wait",
        type=float,
        nargs="?",
        const=math.inf,
        metavar="S",
        help="wait up to S seconds for the server and the model to be ready (without S: until Ctrl-C)",
    )
    add(
        "--shm",
        action="store_true",
        help="pass tensors by shared memory, to a server that `serve` runs on this host",
    )


def _add_requests(add: Callable[..., Any]) -> None:
    add(
        "--batch-rows",
        type=int,
        metavar="N",
        help="maximum rows in a request (default: the rows read so far, up to the server's limit)",
    )
    add("--window", type=int, metavar="N", default=16, help="maximum requests in flight")
    add("--timeout", type=float, metavar="S", default=30.0, help="seconds for the answer to one request")
    add(
        "--retry-for",
        type=float,
        metavar="S",
        default=60.0,
        help="seconds for which the server may be away during the stream",
    )


def _add_failures(add: Callable[..., Any]) -> None:
    add("--max-errors", type=int, metavar="N", help="stop once more than N samples have failed")
    add("--allow-nan", action="store_true", help="send NaN rather than refuse it")


def _take_io_options(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the words without `--io.OPTION VALUE`, and those options."""
    rest: list[str] = []
    io_options: dict[str, str] = {}
    queue = iter(enumerate(words))
    for place, word in queue:
        if word == "--wait" and not _is_number(words[place + 1 : place + 2]):
            rest.append("--wait=inf")  # the next word is no number of seconds, but MODEL for example
            continue
        if not word.startswith("--io."):
            rest.append(word)
            continue
        name, equals, value = word.removeprefix("--io.").partition("=")
        if not equals:
            _, following = next(queue, (0, None))
            if following is None:
                raise UsageError(f"predict: {word} needs a value")
            value = following
        io_options[name.replace("-", "_")] = value
    return rest, io_options


def _is_number(words: list[str]) -> bool:
    try:
        return bool(words) and float(words[0]) is not None
    except ValueError:
        return False


def _check(options: argparse.Namespace, io_options: dict[str, str]) -> None:
    _check_source_and_sink(options, io_options)
    for flag, value, minimum in (
        ("count", options.count, -1),
        ("window", options.window, 1),
        ("batch-rows", options.batch_rows, 1),
        ("version", options.version, 1),
        ("window-steps", options.window_steps, 1),
        ("hop-steps", options.hop_steps, 1),
        ("max-errors", options.max_errors, 0),
    ):
        if value is not None and value < minimum:
            raise UsageError(f"--{flag}: expected {minimum} or more, got {value}")
    if not 0 < options.timeout <= threading.TIMEOUT_MAX:
        raise UsageError(
            f"--timeout: expected seconds above 0, up to {threading.TIMEOUT_MAX:.0f}, got {options.timeout}"
        )
    for flag, seconds in (("retry-for", options.retry_for), ("wait", options.wait)):
        if seconds is not None and not seconds >= 0:
            raise UsageError(f"--{flag}: expected 0 seconds or more, got {seconds}")


def _check_source_and_sink(options: argparse.Namespace, io_options: dict[str, str]) -> None:
    own_io = options.io is not None or options.config is not None
    if own_io and (options.input or options.output):
        raise UsageError("predict: --io and --config replace --input and --output; omit these")
    _check_windows_and_resume(options, own_io=own_io)
    if io_options and not own_io:
        raise UsageError(f"predict: --io.{next(iter(io_options))} needs --io CLASS or --config FILE")
    if own_io:
        return
    if options.input is None:
        raise UsageError(
            "predict: --input is missing; it takes a file, `-`, `golden` or `random` (or use --io CLASS)"
        )
    if options.input == "-" and options.output is None:
        options.output = "-"
    if options.output not in (None, "-") and Path(options.output).resolve() == Path(options.input).resolve():
        raise UsageError(f"predict: --output would overwrite --input, {options.input}; name another file")
    from unitrain.client.io.sinks import check_sink
    from unitrain.client.io.sources import check_source

    check_source(options.input)
    if options.output is not None:
        check_sink(options.output, resume=options.resume)


def _check_windows_and_resume(options: argparse.Namespace, *, own_io: bool) -> None:
    if options.hop_steps is not None and options.window_steps is None:
        raise UsageError("predict: --hop-steps needs --window-steps N")
    if options.window_steps is not None and (own_io or options.input in ("golden", "random")):
        raise UsageError("predict: --window-steps needs an --input that holds a signal: a file or `-`")
    if options.resume and (own_io or options.output is None or options.input == "golden"):
        raise UsageError("predict: --resume needs an --input and an --output that is a file or a folder")
