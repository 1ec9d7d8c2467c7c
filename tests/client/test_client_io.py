"""A source and sink of one's own, in `predict` as a process, against a real Triton."""

import json
import signal
import time

import pytest

OWN_IO = '''
"""A source and sink of one's own."""

import numpy as np

from unitrain.client import ClientIO


class Own(ClientIO):
    def __init__(self, model, path: str, rows: int = 3, scale: float = 1.0, loud: bool = False, fail_at: int = -1,
                 endless: bool = False):
        super().__init__(model)
        self.path, self.rows, self.scale, self.loud, self.fail_at = path, rows, scale, loud, fail_at
        self.endless = endless
        self.seen = []

    def inputs(self):
        index = 0
        while self.endless or index < self.rows:
            if index == self.fail_at:
                raise ValueError("the source broke")
            yield {"x": np.full(3, index * self.scale, np.float32)}
            index += 1

    def decode(self, index, outputs, version):
        self.seen.append(float(outputs["y"][0]))
        if self.endless and index == 100:
            open(self.path + ".going", "w").close()

    def finalize(self):
        with open(self.path, "w") as file:
            file.write(f"{self.loud} {len(self.seen)} {self.seen[:5]}")
'''


@pytest.fixture
def project(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "own.py").write_text(OWN_IO)
    return tmp_path


def test_own_io_replaces_source_and_sink(predict, project):
    """A ClientIO brings samples and takes answers; its options are typed by its signature."""
    done = project / "done.txt"
    words = ("linear", "--io", "own.Own", "--io.path", done, "--io.rows", 4)
    ran = predict(*words, "--io.scale=0.5", "--io.loud", "true", cwd=project)
    assert ran.code == 0, ran.err
    assert done.read_text() == "True 4 [0.0, 1.0, 2.0, 3.0]"


def test_own_io_comes_from_the_settings(predict, project):
    """The `client` section names the class and its options; the command line's win."""
    done = project / "done.txt"
    settings = project / "examples" / "settings.yaml"
    settings.parent.mkdir()
    settings.write_text(f"client_io: {{class_path: own.Own, init_args: {{path: {done}, rows: 9}}}}\n")
    assert predict("linear", "--config", settings, "--io.rows", 2).code == 0
    assert done.read_text() == "False 2 [0.0, 2.0]"
    settings.write_text("experiment: x\n")
    ran = predict("linear", "--config", settings)
    assert ran.code == 2
    assert "expected a section `client_io:" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--io", "own.Won"], "`Won` does not exist"),
        (
            ["--io", "own.Own", "--io.path", "p", "--io.row", "3"],
            "has no option row; its options are path, rows",
        ),
        (["--io", "own.Own", "--io.path", "p", "--io.rows", "many"], "own.Own"),
        (["--io", "own.Own"], "path"),
        (["--io", "json.JSONDecoder"], "must be a unitrain.client.ClientIO with inputs, decode, finalize"),
    ],
)
def test_wrong_io_is_one_sentence(predict, project, words, said):
    """Exit 2, naming the class and the option."""
    ran = predict("linear", *words, cwd=project)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_own_io_is_finalized_when_its_source_breaks(predict, project):
    """What came before is decoded, finalize runs, and the exception is told in one line."""
    done = project / "done.txt"
    ran = predict("linear", "--io", "own.Own", "--io.path", done, "--io.fail_at", 2, cwd=project)
    assert ran.code == 1
    assert "the source broke" in ran.err
    assert "samples    2 in" in ran.out
    assert done.read_text() == "False 2 [0.0, 2.0]"


def test_own_io_is_finalized_on_ctrl_c(predict, project):
    """Ctrl-C ends an endless source with exit 130, after the report and finalize."""
    done = project / "done.txt"
    words = ("linear", "--io", "own.Own", "--io.path", done, "--io.endless", "true", "--json")

    def going():
        deadline = time.monotonic() + 20
        while not (project / "done.txt.going").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    ran = predict(*words, cwd=project, interrupt_when=going)
    assert ran.code == 130
    assert done.read_text().startswith(f"False {json.loads(ran.out)['samples']} [")


def test_own_io_is_finalized_on_sigterm_and_by_max_errors(predict, project):
    """SIGTERM ends as Ctrl-C does, with 143; a stream given up for its errors is finalized, too."""
    done = project / "done.txt"
    words = ("linear", "--io", "own.Own", "--io.path", done, "--json")

    def going():
        deadline = time.monotonic() + 20
        while not (project / "done.txt.going").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    ran = predict(*words, "--io.endless", "true", cwd=project, interrupt_when=going, number=signal.SIGTERM)
    assert ran.code == 143
    assert done.read_text().startswith(f"False {json.loads(ran.out)['samples']} [")
    done.unlink()
    ran = predict(*words, "--io.scale", ".nan", "--io.rows", "50", "--max-errors", "3", cwd=project)
    assert ran.code == 1
    assert json.loads(ran.out)["errors"] == {"data": 4}
    assert done.read_text() == "False 0 []"
