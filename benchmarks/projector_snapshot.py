"""`write_snapshot` against torch's `SummaryWriter.add_embedding`: time and bytes, in one run.

    python benchmarks/projector_snapshot.py [--rows 10000 100000] [--width 64] [--repeats 5] [--sprites] [--json]

Both write the same points with one label a row; the two take turns. Times are medians in seconds with the
least and the most; bytes are those of the files on the disk. `write_snapshot` flushes to the disk,
`add_embedding` does not. add_embedding is measured once a size, since it takes long.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from unitrain.projector import write_snapshot

THUMBNAIL_PX = 28


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="write_snapshot against SummaryWriter.add_embedding")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000], help="points a snapshot")
    parser.add_argument("--width", type=int, default=64, help="values a point")
    parser.add_argument("--repeats", type=int, default=5, help="snapshots of ours a size")
    parser.add_argument("--their-repeats", type=int, default=1, help="snapshots of add_embedding a size")
    parser.add_argument("--sprites", action="store_true", help="with 28 x 28 thumbnails, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    results = [
        _compare(rows, options.width, options.repeats, options.their_repeats, sprites=sprites)
        for rows in options.rows
        for sprites in ([False, True] if options.sprites else [False])
    ]
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(
        "rows    width  sprites  ours (least to most)        add_embedding  faster     ours      theirs  smaller"
    )
    for r in results:
        ours = f"{r['ours_s']:.3f} s ({r['ours_least_s']:.3f} to {r['ours_greatest_s']:.3f})"
        print(
            f"{r['rows']:<7} {r['width']:<6} {'yes' if r['sprites'] else 'no':<8} {ours:<30} "
            f"{r['theirs_s']:>10.3f} s {r['times_faster']:>7.1f} "
            f"{r['ours_bytes'] / 1e6:>6.1f} MB {r['theirs_bytes'] / 1e6:>6.1f} MB {r['times_smaller']:>6.1f}"
        )


def _compare(rows: int, width: int, repeats: int, their_repeats: int, *, sprites: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(rows, width)).astype(np.float32)
    labels = rng.integers(0, 10, rows)
    images = rng.integers(0, 255, (rows, THUMBNAIL_PX, THUMBNAIL_PX), np.uint8) if sprites else None
    thumbnails = torch.from_numpy(images[:, None]).float().div(255) if images is not None else None

    def ours(directory: Path) -> None:
        write_snapshot(directory, "validation", {"code": points}, {"class": labels}, step=1, sprites=images)

    def theirs(directory: Path) -> None:
        with SummaryWriter(str(directory)) as writer:
            writer.add_embedding(
                torch.from_numpy(points),
                metadata=labels.tolist(),
                label_img=thumbnails,
                global_step=1,
                tag="code",
            )

    ours_s, theirs_s = [], []
    for repeat in range(max(repeats, their_repeats)):
        if repeat < repeats:
            taken_s, ours_bytes = _measure(ours)
            ours_s.append(taken_s)
        if repeat < their_repeats:
            taken_s, theirs_bytes = _measure(theirs)
            theirs_s.append(taken_s)
    return {
        "rows": rows,
        "width": width,
        "sprites": sprites,
        "ours_s": statistics.median(ours_s),
        "ours_least_s": min(ours_s),
        "ours_greatest_s": max(ours_s),
        "theirs_s": statistics.median(theirs_s),
        "times_faster": statistics.median(theirs_s) / statistics.median(ours_s),
        "ours_bytes": ours_bytes,
        "theirs_bytes": theirs_bytes,
        "times_smaller": theirs_bytes / ours_bytes,
    }


def _measure(write: Callable[[Path], None]) -> tuple[float, int]:
    directory = Path(tempfile.mkdtemp(prefix="projector-"))
    try:
        start = time.perf_counter()
        write(directory)
        taken_s = time.perf_counter() - start
        return taken_s, sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
