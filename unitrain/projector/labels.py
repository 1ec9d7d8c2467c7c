"""metadata.tsv: what colours and names the points."""

import re
from collections.abc import Mapping, Sequence

from unitrain.errors import DataError

_LONGEST_LABEL = 200
_EMPTY = "(empty)"
# What ends a line or a cell for the server, which reads with universal newlines, or for the page.
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def check_labels(labels: Mapping[str, Sequence[object]], rows: int) -> None:
    """Nothing, where every label has a value for each row.

    Raises:
        DataError: one has more or fewer.
    """
    for name, values in labels.items():
        if len(values) != rows:
            raise DataError(f"embeddings: label {name} has {len(values)} values, expected {rows}, one a row")


def metadata_text(labels: Mapping[str, Sequence[object]]) -> str:
    """One line a point and one column a label; a header line only where there are several columns.

    The page takes the first line of a single-column file for a label. It passes over blank lines, which
    would shift all labels after them: an empty label is written as "(empty)".
    """
    columns = [[_cell(value) for value in values] for values in labels.values()]
    lines = ["\t".join(row) for row in zip(*columns, strict=True)]
    if len(columns) > 1:
        lines.insert(0, "\t".join(_cell(name) for name in labels))
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = _BREAKS.sub(" ", str(value)).strip()
    return (text[: _LONGEST_LABEL - 1] + "…" if len(text) > _LONGEST_LABEL else text) or _EMPTY
