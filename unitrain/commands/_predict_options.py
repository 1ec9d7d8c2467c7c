"""The options of `predict`, and what of them does not go together."""

import argparse
import math
import threading
from pathlib import Path

from unitrain.commands._parser import ArgumentParser, parse
from unitrain.errors import UsageError


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options, and those of the ClientIO (`--io.OPTION V`), as text.

    Raises:
        UsageError: one is unknown or wrong, or they do not go together.
    """
    words, io_options = _take_io_options(argv)
    options = parse(_parser(), words)
    _check(options, io_options)
    return options, io_options


def _parser() -> ArgumentParser:
    parser = ArgumentParser("predict", "Ask a served model; all else is known from the server's metadata.")
    add = parser.add_argument
    add("model", metavar="MODEL", help="its name on the server")
    add("--url", default="127.0.0.1:8001", help="host:port of Triton's gRPC endpoint")
    add("--version", type=int, help="to be asked (default: the newest)")
    add(
        "--input",
        help=".csv, .npy, .npz or .jsonl file; a folder or a quoted pattern of images or arrays; - (standard input, "
        "jsonl or csv); golden; random",
    )
    add(
        "--output",
        help=".csv, .npy, .npz or .jsonl file; a folder (DIR/: a file a sample); projector:DIR (for TensorBoard); - "
        "(standard output, jsonl) (default: none; - if --input is -)",
    )
    add("--output-name", help="the output that a .npy file holds, where the model has more than one")
    add("--resume", action="store_true", help="go on after the samples that --output holds already")
    add(
        "--window-steps", type=int, metavar="N", help="--input is a long signal: ask windows of N steps of it"
    )
    add("--hop-steps", type=int, metavar="M", help="from a window's begin to the next one's (default: N)")
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
    add(
        "--wait",
        type=float,
        nargs="?",
        const=math.inf,
        metavar="S",
        help="seconds to wait for the server and the model at the start (without S: until Ctrl-C)",
    )
    add("--max-errors", type=int, metavar="N", help="end when more than N samples have failed")
    add(
        "--shm",
        action="store_true",
        help="pass tensors by shared memory, to a server that `serve` runs on this host",
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
    queue = iter(enumerate(words))
    for place, word in queue:
        if word == "--wait" and not _is_number(words[place + 1 : place + 2]):
            rest.append("--wait=inf")  # what follows is no number of seconds but MODEL, say
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
        taken[name.replace("-", "_")] = value
    return rest, taken


def _is_number(words: list[str]) -> bool:
    try:
        return bool(words) and float(words[0]) is not None
    except ValueError:
        return False


def _check(options: argparse.Namespace, io_options: dict[str, str]) -> None:
    _check_source_and_sink(options, io_options)
    for flag, value, least in (
        ("count", options.count, -1),
        ("window", options.window, 1),
        ("batch-rows", options.batch_rows, 1),
        ("version", options.version, 1),
        ("window-steps", options.window_steps, 1),
        ("hop-steps", options.hop_steps, 1),
        ("max-errors", options.max_errors, 0),
    ):
        if value is not None and value < least:
            raise UsageError(f"--{flag}: expected at least {least}, got {value}")
    if not 0 < options.timeout <= threading.TIMEOUT_MAX:
        raise UsageError(
            f"--timeout: expected seconds above 0 and at most {threading.TIMEOUT_MAX:.0f}, got {options.timeout}"
        )
    for flag, seconds in (("retry-for", options.retry_for), ("wait", options.wait)):
        if seconds is not None and not seconds >= 0:
            raise UsageError(f"--{flag}: expected seconds from 0, got {seconds}")


def _check_source_and_sink(options: argparse.Namespace, io_options: dict[str, str]) -> None:
    own = options.io is not None or options.config is not None
    if own and (options.input or options.output):
        raise UsageError(
            "predict: --io and --config bring their own source and sink; leave --input and --output out"
        )
    _check_windows_and_resume(options, own=own)
    if io_options and not own:
        raise UsageError(f"predict: --io.{next(iter(io_options))} needs --io CLASS or --config F")
    if own:
        return
    if options.input is None:
        raise UsageError(
            "predict: --input is missing; it takes a file, `-`, `golden` or `random` (or use --io CLASS)"
        )
    if options.input == "-" and options.output is None:
        options.output = "-"
    if options.output not in (None, "-") and Path(options.output).resolve() == Path(options.input).resolve():
        raise UsageError(
            f"predict: --output would overwrite its own --input, {options.input}; name another one"
        )
    from unitrain.client.io.sinks import check_sink
    from unitrain.client.io.sources import check_source

    check_source(options.input)
    if options.output is not None:
        check_sink(options.output, resume=options.resume)


def _check_windows_and_resume(options: argparse.Namespace, *, own: bool) -> None:
    if options.hop_steps is not None and options.window_steps is None:
        raise UsageError("predict: --hop-steps needs --window-steps N")
    if options.window_steps is not None and (own or options.input in ("golden", "random")):
        raise UsageError("predict: --window-steps needs an --input that holds a signal: a file or `-`")
    if options.resume and (own or options.output is None or options.input == "golden"):
        raise UsageError("predict: --resume needs an --input and an --output that is a file or a folder")
