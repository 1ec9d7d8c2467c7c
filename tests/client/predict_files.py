"""Rows as files of every kind, and back."""

import csv
import io
import json

import numpy as np

ROWS = 7


def write_rows(path, rows):
    """The rows as a source of the path's kind."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".npz":
        np.savez(path, x=rows, label=np.zeros(len(rows)))
    elif path.suffix == ".csv":
        lines = [",".join(["label", *(f"x[{i}]" for i in range(3))])]
        path.write_text("\n".join(lines + [",".join(["a", *map(str, row)]) for row in rows]) + "\n")
    else:
        path.write_text("\n".join(json.dumps({"x": row.tolist()}) for row in rows) + "\n")
    return path


def read_rows(path):
    """(outputs y, versions) of a sink of the path's kind."""
    if path.suffix == ".npz":
        arrays = np.load(path)
        assert arrays["version"].dtype == np.int64
        return arrays["y"], arrays["version"].tolist()
    if path.suffix == ".npy":
        return np.load(path), None
    return read_text(path.read_text(), path.suffix)


def read_text(text, suffix):
    if suffix == ".csv":
        lines = list(csv.DictReader(io.StringIO(text)))
        return np.array([[np.float32(r[f"y[{i}]"]) for i in range(3)] for r in lines]), [
            int(r["version"]) for r in lines
        ]
    lines = [json.loads(line) for line in text.splitlines()]
    assert [r["index"] for r in lines] == list(range(len(lines)))
    return np.array([r["y"] for r in lines], np.float32), [r["version"] for r in lines]
