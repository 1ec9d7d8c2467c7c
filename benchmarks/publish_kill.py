"""kill -9 at random moments of publishing, two publishers on one model, a reader looking all along.

    python benchmarks/publish_kill.py [--kills 200] [--seed 7]

Counts half versions that the reader saw, numbers that were given twice, versions that were told as
published and are not there, and what is left in the staging folder after the next start. All must be 0.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "repository"))

from small_versions import config_of, publish
from test_killed_publishing import Reader, kill_two_publishers

from unitrain.repository import Repository


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    randomness = random.Random(options.seed)  # noqa: S311 - moments, not secrets
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        repository = Repository(Path(folder) / "repository")
        reader = Reader(repository)
        reader.start()
        told: list[int] = []
        left_before = 0
        try:
            for _ in range(options.kills // 2):
                told += kill_two_publishers(repository.root, randomness.uniform(0, 0.1))
                staging = repository.staging_dir / "codes"
                left_before += sum(path.name.startswith("work-") for path in staging.iterdir())
        finally:
            reader.ended.set()
            reader.join()
        there = set(repository.versions("codes"))
        repository.check_writable()
        kept = {"lock", "counter", "config.pbtxt"}
        left = [path.name for path in (repository.staging_dir / "codes").iterdir() if path.name not in kept]
        following = publish(repository, config_of())
    figures = {
        "kill -9": options.kills // 2 * 2,
        "versions published": len(told),
        "killed while a version was being written": left_before,
        "looks of the reader": reader.looks,
        "half versions seen": len(reader.halves),
        "numbers given twice": len(told) - len(set(told)),
        "told as published but not there": len(set(told) - there),
        "left in staging after the next start": len(left),
        "next number not larger": int(following <= max(there)),
    }
    for name, value in figures.items():
        print(f"{name:42} {value}")
    print(f"{'seconds':42} {time.monotonic() - started_s:.0f}")
    return int(any(list(figures.values())[4:]))


if __name__ == "__main__":
    sys.exit(main())
