"""`kill -9` at any moment of publishing leaves whole versions, unique numbers and a clean staging."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from small_versions import config_of, publish

from unitrain.repository import Repository

SIZE_BYTES = 300_000
ROUNDS = 6

PUBLISHER = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from small_versions import config_of
from unitrain.repository import Repository

repository = Repository(Path(sys.argv[1]))
config = config_of()
while True:
    with repository.new_version("codes", config) as staged:
        with (staged.path / "model.onnx").open("wb") as file:
            for _ in range(10):
                file.write(bytes({SIZE_BYTES // 10}))
        (staged.path / "manifest.json").write_text("{{}}")
    print(staged.number, flush=True)
    time.sleep(0.03)  # the other's turn
"""


class Reader(threading.Thread):
    """Looks at the repository all along and notes every version that is not whole."""

    def __init__(self, repository: Repository) -> None:
        super().__init__()
        self.repository = repository
        self.halves: list[int] = []
        self.looks = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.001):
            for number in self.repository.versions("codes")[-3:]:
                folder = self.repository.version_dir("codes", number)
                whole = (folder / "model.onnx").stat().st_size == SIZE_BYTES
                if not whole or (folder / "manifest.json").read_text() != "{}":
                    self.halves.append(number)
                self.looks += 1


def kill_two_publishers(root: Path, after_s: float) -> list[int]:
    """The numbers that two publishers on one model told before both were killed."""
    publishers = [
        subprocess.Popen([sys.executable, "-c", PUBLISHER, root], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [publisher.stdout for publisher in publishers if publisher.stdout]
    told = [output.readline() for output in outputs]  # both are at work
    time.sleep(after_s)
    for publisher in publishers:
        publisher.send_signal(signal.SIGKILL)
    told += [output.read() for output in outputs]
    for publisher, output in zip(publishers, outputs, strict=True):
        publisher.wait()
        output.close()
    return [int(number) for text in told for number in text.split()]


def test_killed_publishers_leave_only_whole_versions(tmp_path: Path) -> None:
    """Two publishers on one model, killed again and again: no half version, no number twice, nothing stale."""
    randomness = random.Random(7)
    repository = Repository(tmp_path / "repo")
    reader = Reader(repository)
    reader.start()
    told: list[int] = []
    try:
        for _ in range(ROUNDS):
            told += kill_two_publishers(repository.root, randomness.uniform(0, 0.1))
    finally:
        reader.ended.set()
        reader.join()
    assert reader.halves == []
    assert reader.looks > 0
    assert len(told) == len(set(told))
    assert set(told) <= set(repository.versions("codes"))
    repository.check_writable()
    assert {p.name for p in (repository.staging_dir / "codes").iterdir()} == {
        "lock",
        "counter",
        "config.pbtxt",
    }
    largest = repository.versions("codes")[-1]
    assert publish(repository, config_of()) > largest
