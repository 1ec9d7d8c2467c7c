"""The metric names that a module's source code can log, for a metric that has not been logged yet."""

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from unitrain.module_aliases import package_of

_LIBRARIES = {
    "builtins",
    "torch",
    "pytorch_lightning",
    "lightning_fabric",
    "lightning",
    "torchmetrics",
    "unitrain",
}
_NAMING = (ast.Constant, ast.JoinedStr)
_SUFFIX = re.compile(r"(?:_step|_epoch)?(?:/dataloader_idx_\d+)?$")
"""What Lightning appends to a name."""


@dataclass(frozen=True)
class LoggedNames:
    """Texts in the source of a module and of its callbacks, any of which may be a metric's name.

    Attributes:
        texts: the string literals.
        patterns: the f-strings, as regular expressions.
        complete: whether every call of `log` and `log_dict` in it names its metrics by literals or f-strings.
    """

    texts: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    complete: bool

    @classmethod
    def of(cls, module: Any, callbacks: Iterable[Any] = ()) -> "LoggedNames":
        """The names in the source of these objects' classes, those of libraries left out."""
        texts: set[str] = set()
        patterns: list[re.Pattern[str]] = []
        complete = True
        for thing in (module, *callbacks):
            for node in _nodes(type(thing)):
                if node is None:
                    complete = False
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    patterns.append(_pattern(node))
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    complete = complete and _is_literal(node, node.func.attr)
        return cls(frozenset(texts), tuple(patterns), complete)

    def may_hold(self, metric: str, logged: Iterable[str] = ()) -> bool:
        """Whether the source can log a metric that is not among those logged.

        Args:
            metric: its name.
            logged: names logged so far; what has logged one of these is taken to have had its turn.
        """
        logged = set(logged)
        if metric.removesuffix("_epoch") + "_step" in logged - {metric}:
            return True  # an epoch's mean is there when the epoch has ended, which is after its validation
        seen = {_SUFFIX.sub("", name) for name in logged}
        bare = _SUFFIX.sub("", metric)
        if {metric, bare} & (self.texts - seen):
            return True
        return any(p.fullmatch(bare) and not any(map(p.fullmatch, seen)) for p in self.patterns)


def _nodes(kind: type) -> Iterator[ast.AST | None]:
    """The syntax of a class, its bases and its module's functions, without overridden methods; None: there is none."""
    overridden: set[str] = set()
    for base in kind.__mro__:
        if package_of(base.__module__) in _LIBRARIES:
            continue
        try:
            statements = ast.parse(inspect.getsource(sys.modules[base.__module__])).body
        except (OSError, TypeError, KeyError, SyntaxError):
            yield None
            continue
        found = next((s for s in statements if isinstance(s, ast.ClassDef) and s.name == base.__name__), None)
        if found is None:  # a class made in a function
            yield None
            continue
        methods = {s.name: s for s in found.body if isinstance(s, ast.FunctionDef)}
        for part in (*(s for s in statements if not isinstance(s, ast.ClassDef)), *found.body):
            if not (isinstance(part, ast.FunctionDef) and part in found.body and part.name in overridden):
                yield from ast.walk(part)
        overridden |= {name for name, method in methods.items() if not _calls_super(method)}


def _calls_super(method: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "super" for node in ast.walk(method))


def _pattern(text: ast.JoinedStr) -> re.Pattern[str]:
    parts = [re.escape(str(v.value)) if isinstance(v, ast.Constant) else ".*" for v in text.values]
    return re.compile("".join(parts))


def _is_literal(call: ast.Call, method: str) -> bool:
    """Whether a call is none that logs, or names what it logs by literals."""
    if method not in ("log", "log_dict"):
        return True
    first = (
        call.args[0]
        if call.args
        else next((k.value for k in call.keywords if k.arg in ("name", "dictionary")), None)
    )
    if method == "log":
        return isinstance(first, _NAMING) or not _is_of_self(call)
    return isinstance(first, ast.Dict) and all(isinstance(key, _NAMING) for key in first.keys)


def _is_of_self(call: ast.Call) -> bool:
    """Whether `log` is not a function of mathematics or of a logger: `torch.log(x)`, `math.log(x)`."""
    return not (isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
                and call.func.value.id in ("torch", "math", "np", "numpy", "logging", "logger"))  # fmt: skip
