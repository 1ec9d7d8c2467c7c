"""The commands: a table from name to function; only the chosen one's module is imported."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from unitrain import __version__
from unitrain.errors import UnitrainError
from unitrain.terminal import accept_any_text, say_error

COMMANDS = {
    "new": ("unitrain.commands.new", "make a working project to start from"),
    "fit": ("unitrain.commands.fit", "train, and publish versions of the model while doing so"),
    "validate": ("unitrain.commands.evaluate:validate", "measure a run's checkpoint on the validation data"),
    "test": ("unitrain.commands.evaluate:test", "measure a run's checkpoint on the test data"),
    "check": ("unitrain.commands.check", "all that is wrong with a settings file, and a dry run"),
    "doctor": ("unitrain.commands.doctor", "look at this machine, and tell what to do"),
    "export": ("unitrain.commands.export", "publish a run's checkpoint by hand, through the same gates"),
    "serve": ("unitrain.commands.serve", "start Triton on a model repository and load what appears in it"),
    "predict": ("unitrain.commands.predict", "ask a served model, one sample or a stream"),
    "models": ("unitrain.commands.models", "list the versions in a model repository"),
    "runs": ("unitrain.commands.runs", "list the runs of the experiments"),
    "tensorboard": ("unitrain.commands.tensorboard", "open TensorBoard on the experiments"),
}
"""Name → (module with `main(argv) -> exit code`, or `module:function`; what it does)."""


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: python -m unitrain COMMAND [options]\n\n"
        "Train, monitor, evaluate, deploy and serve PyTorch models in one way.\n\n"
        f"{rows}\n\n"
        "`COMMAND --help` tells a command's options. `--version` prints unitrain's version.\n"
        "`--debug` shows the traceback of an error."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 good, 1 failed, 2 wrong usage or settings, 128 + n ended by signal n.
    """
    accept_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        print(f"unitrain {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the commands are {', '.join(COMMANDS)}."
        say_error(f"there is no command `{name}`; {hint}")
        return 2
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in own
    if debug:
        arguments.remove("--debug")
    try:
        module, _, function = COMMANDS[name][0].partition(":")
        return int(getattr(import_module(module), function or "main")(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing to tell, and nothing more to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except UnitrainError as error:
        if debug:
            raise
        say_error(error)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or "no message"
        say_error(f"unexpected {type(error).__name__}: {text} (--debug shows where)")
        return 1
