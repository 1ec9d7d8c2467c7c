"""Tables in CSV files: numbers, categories, missing values, and a target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from unitrain.datamodules.csv_files import MISSING, Rows, data_path, is_number, read_header, read_rows
from unitrain.errors import DataError
from unitrain.loaders import ArrayLoader

OTHER = "other"
"""The category of what training never saw, and of missing values."""

_COARSEST = 0.05
"""Share of a column's standard deviation that float32 may round off."""


class CsvTable(LightningDataModule):
    """A table's rows as features and targets.

    Batches are mappings of `features`, float32 [batch, feature], and `target`: float32 [batch, 1] in the table's
    unit, or, where the target is a category, int64 [batch], a place in `class_names`.

    Features are first the numbers as they are, then a 0 or 1 for each category of each categorical column, the
    last of them `other`: what no training row has, or what is missing. A missing number becomes the median of the
    training rows, and one more feature, a 0 or 1, marks it if the training rows lack some.

    A column that is named neither way is recognised by its cells: numbers if all of them are, categories if few differ. One
    of which most are numbers, or most differ, is refused: a typo, a decimal comma or a date would be a category each.

    Args:
        file: a CSV file whose first line names the columns; `package:path` is one in an installed package.
        target: column to predict.
        numbers: feature columns that are numbers.
        categories: feature columns that are categories. Without any `numbers` and `categories` every other column
            with a name is a feature.
        target_is_category: the target is a class rather than a number.
        test_file: another file, for the test.
        validation_share: share of the rows, in (0, 1).
        test_share: share of the rows, where there is no `test_file`.
        batch_size: rows a training batch.
        delimiter: between cells.
        seed: seed of the choice of rows.

    Attributes:
        feature_names: `column`, `column=category` and `column is missing`.
        feature_means: mean of each feature over the training rows; 0 for those that are 0 or 1.
        feature_stds: the standard deviations; 1 for those that are 0 or 1, or never change.
        class_names: of a categorical target; empty for a number.
        target_means, target_stds: of a target that is a number, a value each.

    Raises:
        DataError: the file can't be read, with its line and column; a target is missing; a part has no rows; a
            column is named twice.
    """

    def __init__(
        self,
        file: str,
        target: str,
        *,
        numbers: Sequence[str] = (),
        categories: Sequence[str] = (),
        target_is_category: bool = False,
        test_file: str | None = None,
        validation_share: float = 0.2,
        test_share: float = 0.0,
        batch_size: int = 64,
        delimiter: str = ",",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        path = data_path(file)
        if not (numbers or categories):
            columns = [name for name in read_header(path, delimiter) if name not in ("", target)]
            table = _read(path, [*columns, target], delimiter)
            numbers = [name for name in columns if _is_numeric(table, name)]
            categories = [name for name in columns if name not in numbers]
        else:
            table = _read(path, [*numbers, *categories, target], delimiter)
        named = [*numbers, *categories, target]
        if len(named) == 1 or len(set(named)) < len(named):
            raise DataError(
                f"{path}: expected columns for features beside the target, each once, got {', '.join(named)}"
            )
        if min(validation_share, test_share) < 0:
            raise DataError(
                f"{path}: expected shares of at least 0, got validation_share {validation_share} and test_share {test_share}"
            )
        n_rows = len(table.lines)
        order = np.random.default_rng(seed).permutation(n_rows)
        bounds = np.cumsum([round(n_rows * share) for share in (test_share, validation_share)])
        test_rows, validation_rows, train_rows = (np.sort(part) for part in np.split(order, bounds))
        if not len(validation_rows) or not len(train_rows):
            raise DataError(
                f"{path}: expected rows for training and for validation, got {n_rows} rows, validation_share "
                f"{validation_share} and test_share {test_share}"
            )
        self.target = _Target.of(table, target, is_category=target_is_category)
        self.encoding = Encoding.of(_chosen(table, train_rows), numbers, categories)
        self.train, self.validation, self.test = (
            self._encoded(_chosen(table, rows)) for rows in (train_rows, validation_rows, test_rows)
        )
        if test_file is not None:
            self.test = self._encoded(_read(data_path(test_file), list(table.columns), delimiter))

        flags = np.array([len(numbers) <= i for i in range(len(self.encoding.names))])
        features = self.train["features"].astype(np.float64)
        stds = features.std(0)
        self.feature_names = self.encoding.names
        self.feature_means = np.where(flags, 0.0, features.mean(0)).tolist()
        self.feature_stds = np.where(flags | (stds == 0), 1.0, stds).tolist()
        self.class_names = self.target.classes
        values = self.train["target"].astype(np.float64)
        self.target_means = [0.0 if target_is_category else float(values.mean())]
        self.target_stds = [1.0 if target_is_category else float(values.std()) or 1.0]

    def train_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> ArrayLoader:
        return ArrayLoader(self.validation, batch_size=1024)

    def test_dataloader(self) -> ArrayLoader | list[ArrayLoader]:
        # An empty list means that there is no test.
        return ArrayLoader(self.test, batch_size=1024) if len(self.test["target"]) else []

    def _encoded(self, table: Rows) -> dict[str, NDArray[Any]]:
        return {"features": self.encoding.encode(table), "target": self.target.encode(table)}


@dataclass(frozen=True)
class Encoding:
    """Encoding of rows as features, fitted on the training rows.

    Attributes:
        medians: median of each column of numbers.
        categories: categories of each categorical column, in alphabetical order.
        flagged: columns of numbers that have a feature for missing values.
    """

    medians: dict[str, float]
    categories: dict[str, list[str]]
    flagged: list[str]

    @classmethod
    def of(cls, table: Rows, numbers: Sequence[str], categories: Sequence[str]) -> "Encoding":
        """The encoding of training rows.

        Raises:
            DataError: a cell is no number, or a column has none.
        """
        values = {name: _finite(table, name) for name in numbers}
        for name, column in values.items():
            if not np.isfinite(column).any():
                raise DataError(f"{table.path}, column {name}: expected numbers, got missing values alone")
            if np.spacing(np.float32(np.nanmax(np.abs(column)))) > _COARSEST * np.nanstd(column) > 0:
                raise DataError(
                    f"{table.path}, column {name}: expected numbers that float32 can distinguish, got values near "
                    f"{np.nanmean(column):.6g} that differ by {np.nanstd(column):.3g}; subtract an offset from the column"
                )
        return cls(
            {name: float(np.nanmedian(column)) for name, column in values.items()},
            {name: sorted(set(table.columns[name]) - MISSING) for name in categories},
            [name for name, column in values.items() if np.isnan(column).any()],
        )

    @property
    def names(self) -> list[str]:
        """Number of features."""
        flags = [f"{name}={c}" for name, known in self.categories.items() for c in (*known, OTHER)]
        return [*self.medians, *flags, *(f"{name} is missing" for name in self.flagged)]

    def encode(self, table: Rows) -> NDArray[np.float32]:
        """Features, [row, feature].

        Raises:
            DataError: a cell is no number.
        """
        values = {name: _finite(table, name) for name in self.medians}
        columns = [np.where(np.isnan(values[n]), median, values[n]) for n, median in self.medians.items()]
        for name, known in self.categories.items():
            cells = np.array([known.index(c) if c in known else len(known) for c in table.columns[name]], int)
            columns += list(np.eye(len(known) + 1)[cells].T)
        columns += [np.isnan(values[name]) for name in self.flagged]
        return np.stack(columns, 1).astype(np.float32)


@dataclass(frozen=True)
class _Target:
    column: str
    classes: list[str]

    @classmethod
    def of(cls, table: Rows, column: str, *, is_category: bool) -> "_Target":
        for row, cell in enumerate(table.columns[column]):
            if cell in MISSING:
                raise table.wrong(row, column, "a target")
        classes = sorted(set(table.columns[column])) if is_category else []
        numbers: dict[float, str] = {}
        for name in classes:
            if is_number(name) and numbers.setdefault(float(name), name) != name:
                row = table.columns[column].index(name)
                raise table.wrong(row, column, f"one spelling of a class, as {numbers[float(name)]!r}")
        return cls(column, classes)

    def encode(self, table: Rows) -> NDArray[Any]:
        if not self.classes:
            return _finite(table, self.column, missing=False)[:, None].astype(np.float32)
        for row, cell in enumerate(table.columns[self.column]):
            if cell not in self.classes:
                raise table.wrong(row, self.column, f"one of {', '.join(self.classes)}")
        return np.array([self.classes.index(cell) for cell in table.columns[self.column]], np.int64)


def _read(path: Path, columns: Sequence[str], delimiter: str) -> Rows:
    parts = list(read_rows(path, columns, delimiter=delimiter))
    if not parts:
        raise DataError(f"{path}: expected rows below the names of the columns, got none")
    lines = [line for part in parts for line in part.lines]
    return Rows(path, lines, {name: [c for part in parts for c in part.columns[name]] for name in columns})


def _is_numeric(table: Rows, column: str) -> bool:
    """Return whether a column is numbers rather than categories."""
    given = {row: cell for row, cell in enumerate(table.columns[column]) if cell not in MISSING}
    wrong = [row for row, cell in given.items() if not is_number(cell)]
    if not wrong:
        return True
    alike = sum(is_number(cell.replace(",", ".")) for cell in given.values())
    if 2 * max(alike, len(set(given.values()))) > len(given):
        what = (
            "a number, with a decimal point, as in most rows"
            if 2 * alike > len(given)
            else "a text that other rows have too"
        )
        raise table.wrong(wrong[0], column, f"{what}, or features named by `numbers` and `categories`")
    return False


def _finite(table: Rows, column: str, *, missing: bool = True) -> NDArray[np.float64]:
    """A column's numbers, [row]; NaN where one is missing, if it may be."""
    values = table.numbers(column)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)  # what a batch holds
    wrong = np.flatnonzero(np.isinf(single) if missing else ~np.isfinite(single))
    if len(wrong):
        finite = np.isfinite(values[wrong[0]])
        raise table.wrong(int(wrong[0]), column, "a number below 3e38" if finite else "a finite number")
    return values


def _chosen(table: Rows, rows: NDArray[np.int64]) -> Rows:
    lines = [table.lines[row] for row in rows]
    columns = {name: [cells[row] for row in rows] for name, cells in table.columns.items()}
    return Rows(table.path, lines, columns)
