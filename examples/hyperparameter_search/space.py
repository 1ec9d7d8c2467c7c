"""Search space, read from a file, for Optuna and for hyperopt."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unitrain.errors import SettingsError

if TYPE_CHECKING:
    import optuna

_KEYS = {"low", "high", "log", "choices"}


@dataclass(frozen=True)
class Dimension:
    """A setting and its values: a range, or choices.

    Attributes:
        name: dotted name of the setting.
        low: the range's least value; integers make a range of integers.
        high: its greatest value.
        log: search on a logarithmic scale.
        choices: values instead of a range.
    """

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def of_integers(self) -> bool:
        """Return whether a range holds integers alone."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suggest(self, trial: "optuna.Trial") -> Any:
        """A value for an Optuna trial."""
        if self.choices:
            # Optuna keeps texts and numbers: a list of sizes is kept as its text.
            return yaml.safe_load(trial.suggest_categorical(self.name, [_text(c) for c in self.choices]))
        if self.of_integers:
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def as_parameter(self, value: Any) -> Any:
        """A setting's value as Optuna keeps it; the inverse of `suggest`."""
        return _text(value) if self.choices else value

    def hyperopt(self) -> Any:
        """The dimension as hyperopt has it."""
        import numpy as np
        from hyperopt import hp
        from hyperopt.pyll import scope

        if self.choices:
            return hp.choice(self.name, self.choices)
        low, high = np.log([self.low, self.high]) if self.log else (self.low, self.high)
        if self.of_integers:
            drawn = (hp.qloguniform if self.log else hp.quniform)(self.name, low, high, 1)
            return scope.int(drawn)
        return (hp.loguniform if self.log else hp.uniform)(self.name, low, high)

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of the dimension's."""
        if self.choices:
            return value in self.choices
        inside = isinstance(value, int | float) and self.low <= value <= self.high
        return inside and (isinstance(value, int) or not self.of_integers)


def read_space(path: Path) -> list[Dimension]:
    """The dimensions of a space file, in its order.

    Raises:
        SettingsError: the file can't be read, or a dimension is neither a range nor choices.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} can't be read as a space: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise SettingsError(f"{path}: expected dotted names of settings, each with a range or choices")
    return [_dimension(path, str(name), options) for name, options in content.items()]


def values_in(settings: Mapping[str, Any], space: list[Dimension]) -> dict[str, Any]:
    """Return a settings file's values for the dimensions, without those that are missing or out of range."""
    found = {}
    for dimension in space:
        value: Any = settings
        for key in dimension.name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and dimension.holds(value):
            found[dimension.name] = value
    return found


def _dimension(path: Path, name: str, options: Any) -> Dimension:
    where = f"{path}: {name}"
    if not isinstance(options, dict) or not options or set(options) - _KEYS:
        raise SettingsError(
            f"{where}: expected {{low, high}}, {{low, high, log: true}} or {{choices: [...]}}, got {options}"
        )
    if "choices" in options:
        choices = options["choices"]
        if len(options) > 1 or not isinstance(choices, list) or not choices:
            raise SettingsError(f"{where}: expected choices, a list, and nothing beside them, got {options}")
        return Dimension(name, choices=tuple(choices))
    low, high, log = options.get("low"), options.get("high"), options.get("log", False)
    numbers = all(isinstance(n, int | float) and not isinstance(n, bool) for n in (low, high))
    if not numbers or low >= high or (log and low <= 0):
        raise SettingsError(f"{where}: expected low below high, above 0 where log, got {options}")
    return Dimension(name, low, high, bool(log))


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
