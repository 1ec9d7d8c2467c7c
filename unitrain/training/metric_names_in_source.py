"""Metric names that a module's source code can log, found by parsing it."""

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from unitrain.import_aliases import package_of

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
"""Suffixes that Lightning appends to a name."""


@dataclass(frozen=True)
class LoggedNames:
    """Names of metrics that the source of a module and of its callbacks may log.

    Attributes:
        texts: string literals.
        patterns: f-strings, as regular expressions.
        complete: True if every call of `log` and `log_dict` names its metrics by literals or f-strings.
    """

    texts: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    complete: bool

    @classmethod
    def from_source(cls, module: Any, callbacks: Iterable[Any] = ()) -> "LoggedNames":
        """Return the names in the source of the objects' classes, without classes of libraries."""
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
        """Return True if the source can log a metric that is not among those logged.

        Args:
            metric: name of the metric.
            logged: names logged so far; their literals and f-strings are ignored.
        """
        logged = set(logged)
        if metric.removesuffix("_epoch") + "_step" in logged - {metric}:
            return True  # an epoch's mean is logged after the epoch's validation
        seen = {_SUFFIX.sub("", name) for name in logged}
        bare = _SUFFIX.sub("", metric)
        if {metric, bare} & (self.texts - seen):
            return True
        return any(p.fullmatch(bare) and not any(map(p.fullmatch, seen)) for p in self.patterns)


def _nodes(kind: type) -> Iterator[ast.AST | None]:
    """Yield the syntax nodes of a class, its bases and its module's functions without overridden methods.

    None stands for a class without source.
    """
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
        if found is None:  # a class within a function
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
    """Return True if a call logs nothing, or names its metrics by literals."""
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
    """Return True if `log` is a method of a module, and no logarithm or logger: `torch.log(x)`, `math.log(x)`."""
    return not (isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
                and call.func.value.id in ("torch", "math", "np", "numpy", "logging", "logger"))  # fmt: skip
