"""A malformed manifest.json or run.json is one row that says so; the other rows stay as they are."""

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unitrain.cli import main
from unitrain.errors import UnitrainError
from unitrain.repository import Repository, model_config
from unitrain.repository.manifest import Manifest, Metric, read_manifest
from unitrain.runs import RunFolder, list_runs
from unitrain.serving.status import _origin
from unitrain.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", (3,)),), batched=True)
WRONG: list[Any] = [
    None, True, -1, 3.5, 2**70, 10**400, float("nan"), float("inf"), "", "x", "\x1b[2J\n\u202e", "\ud800", "../../x",
    [], [None], [[1]], {}, {"x": None}, {"version": "x"}, {"max_abs": "x"}, [{"version": None}],
]  # fmt: skip
"""Put in the place of each value in turn."""


def _manifest(version: int) -> Manifest:
    return Manifest(
        model="codes",
        version=version,
        published_at="2026-01-02T03:04:05+00:00",
        run="curve/a",
        run_dir="experiments/curve/a",
        step=10,
        epoch=1,
        weights="ema",
        signature=SIGNATURE,
        sha256="0" * 64,
        metric=Metric("val_loss", 0.125, "min"),
        parity={"y": {"max_abs": 2e-7, "max_rel": 1e-3}},
        tolerance={"absolute": 1e-4, "relative": 1e-3, "by_dtype": {"FP16": [1e-2, 1e-2]}, "integer_share": 0.0},
        files={"weights.bin": "0" * 64},
        previous={"version": 1, "value": 0.25},
        rolled_back_from={"version": 1, "newest": 2},
    )  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, element in inner:
        yield (key,)
        yield from ((key, *rest) for rest in _places(element))


def _changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    copy: Any = json.loads(json.dumps(value))
    target = copy
    for key in place[:-1]:
        target = target[key]
    if new is ...:
        del target[place[-1]]
    else:
        target[place[-1]] = new
    return copy


def _variants(good: dict[str, Any]) -> list[str]:
    """Texts with one value of the wrong type or missing, or with two of them."""
    single = [_changed(good, place, new) for place in _places(good) for new in (..., *WRONG)]
    draw = random.Random(0)
    double = []
    for base in draw.sample(single, 150):
        places = list(_places(base))
        if places:
            double.append(_changed(base, draw.choice(places), draw.choice([..., *WRONG])))
    return [json.dumps(value) for value in (*single, *double, *WRONG)]


def _as_text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


NOT_JSON: dict[str, Callable[[Path], object]] = {
    "empty": _as_text(b""),
    "cut": _as_text(b'{"format": 1, "sta'),
    "invalid UTF-8": _as_text(b'{"status": "\xff\xfe"}'),
    "byte order mark": _as_text(b"\xef\xbb\xbf{}"),
    "UTF-16": _as_text('{"status": "running"}'.encode("utf-16")),
    "NUL": _as_text(bytes(4096)),
    "deep list": _as_text(b"[" * 200_000),
    "deep object": _as_text(b'{"metrics":' * 200_000),
    "deep and closed": _as_text(b'{"status": "running", "x": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "digits": _as_text(b'{"status": "running", "step": ' + b"9" * 10_000 + b"}"),
    "a terabyte of nothing": _sparse,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "broken link": lambda path: path.symlink_to("nowhere"),
    "loop of links": lambda path: path.symlink_to(path.name),
}


def _put(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    make(path)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Versions 1 to 3 of `codes`."""
    repository = Repository(tmp_path / "repository")

    config = model_config(
        "codes", SIGNATURE, max_batch_size=8, num_versions=2, max_queue_delay_microseconds=100
    )
    for _ in range(3):
        with repository.new_version("codes", config) as staged:
            (staged.path / "model.onnx").write_bytes(b"x")
            _manifest(staged.number).write(staged.path)
    return repository


@pytest.fixture
def experiments_dir(tmp_path: Path) -> Path:
    """Three runs of one experiment, all finished."""
    for _ in range(3):
        run = RunFolder.create(tmp_path / "experiments", "curve")
        run.settings_path.write_text("x: 1\n")
        run.update(
            epoch=1,
            step=10,
            threads=1,
            root="/x",
            metrics={"val_loss": 0.5},
            git={"commit": "0"},
            best={"metric": "val_loss", "value": 0.5, "step": 10, "epoch": 1},
            published=[{"version": 1, "step": 10}],
            refused=[{"reason": "x"}],
        )
        run.close("finished", "all done")
    return tmp_path / "experiments"


class Terminal:
    """Runs commands in this process, and holds each to what every command promises."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        """What the command printed on standard output."""
        code = main(words)
        captured = self._capsys.readouterr()
        assert code in codes, (words, code, captured.err)
        text = captured.out + captured.err
        assert "unexpected" not in text, (words, text)
        assert "Traceback" not in text, (words, text)
        if "--json" not in words:
            assert text.replace("\n", "").isprintable(), (words, text)
        return captured.out


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    """Runs commands in this process."""
    return Terminal(capsys)


def _look_at_models(terminal: Terminal, repository: Repository) -> None:
    where = ("--model-repository", str(repository.root))
    rows = json.loads(terminal("models", *where, "--json"))
    assert [row["version"] for row in rows] == [1, 2, 3]
    for row in (rows[0], rows[2]):
        assert row["error"] is None
        assert Manifest.from_json(row["manifest"]) == _manifest(row["version"])
    bad = rows[1]
    assert (bad["manifest"] is None) == (bad["error"] is not None)
    table = terminal("models", *where).splitlines()
    assert [line.split()[:2] for line in table[1:]] == [["codes", "1"], ["codes", "2"], ["codes", "3"]]
    assert ("unreadable" in table[2]) == (bad["error"] is not None)
    terminal("models", "show", "codes", "2", *where, codes=(0, 1))
    assert (_origin(repository.root, "codes", "2") or {}).get("error") == bad["error"]


def test_a_malformed_manifest_is_one_row(terminal: Terminal, repository: Repository) -> None:
    """Every key of every wrong type, or missing."""
    version_dir = repository.version_dir("codes", 2)
    path = version_dir / "manifest.json"
    texts = _variants(_manifest(2).to_json())
    for text in texts:
        path.write_text(text)
        try:
            manifest = read_manifest(version_dir)
        except UnitrainError:
            continue
        assert manifest is not None
        manifest.to_metadata()
        assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) is not None
    for text in random.Random(1).sample(texts, 60):
        path.write_text(text)
        _look_at_models(terminal, repository)


@pytest.mark.parametrize("name", NOT_JSON)
def test_a_manifest_that_is_no_json_is_one_row(name: str, terminal: Terminal, repository: Repository) -> None:
    """Also where it is a folder, a pipe, a device, a loop, or has a terabyte; every command goes on."""
    _put(repository.version_dir("codes", 2) / "manifest.json", NOT_JSON[name])
    _look_at_models(terminal, repository)
    where = ("--model-repository", str(repository.root))
    rows = json.loads(terminal("models", "verify", "--json", *where, codes=(1,)))
    assert {row["version"] for row in rows} == {1, 2, 3}
    terminal("models", "diff", "codes", "1", "2", *where, codes=(1,))
    terminal("models", "rollback", "codes", "2", *where, codes=(1,))
    terminal("models", "prune", "--keep", "1", *where)


def _look_at_runs(terminal: Terminal, experiments_dir: Path, bad: Path) -> None:
    where = ("--experiments_dir", str(experiments_dir))
    rows = {row["name"]: row for row in json.loads(terminal("runs", *where, "--json"))}
    assert len(rows) == 3
    for name, row in rows.items():
        if name != bad.name:
            assert (row["status"], row["error"], row["best"]["value"]) == ("finished", None, 0.5)
    unreadable = rows[bad.name]["error"] is not None
    assert len([line for line in terminal("runs", *where).splitlines() if line.startswith("curve ")]) >= 2
    terminal("runs", "show", str(bad), *where, codes=(0, 1))
    terminal("runs", "compare", str(bad), "last", *where, codes=(0, 1))
    if unreadable:
        with pytest.raises(UnitrainError, match="can't be read as a run's record"):
            RunFolder.open(bad)


def test_a_malformed_run_record_is_one_row(terminal: Terminal, experiments_dir: Path) -> None:
    """Every key of every wrong type, or missing."""
    bad = list_runs(experiments_dir)[1].path
    path = bad / "run.json"
    texts = _variants(json.loads(path.read_text()))
    for text in texts:
        path.write_text(text)
        for run in list_runs(experiments_dir):
            assert isinstance(run.status, str)
            assert all(isinstance(number, int) for number in run.published)
            assert run.best is None or run.best["metric"] is not None
    for text in random.Random(1).sample(texts, 60):
        path.write_text(text)
        _look_at_runs(terminal, experiments_dir, bad)


@pytest.mark.parametrize("name", NOT_JSON)
def test_a_run_record_that_is_no_json_is_one_row(
    name: str, terminal: Terminal, experiments_dir: Path
) -> None:
    """Also where it is a folder, a pipe, a device, a loop, or has a terabyte."""
    bad = list_runs(experiments_dir)[1].path
    _put(bad / "run.json", NOT_JSON[name])
    _look_at_runs(terminal, experiments_dir, bad)


def test_odd_entries_beside_the_runs_do_not_hide_them(terminal: Terminal, experiments_dir: Path) -> None:
    """Loops of links, pipes, names with digits that are no numbers, a lock that is a pipe."""
    (experiments_dir / "loop").symlink_to("loop")
    (experiments_dir / "curve" / "loop").symlink_to("loop")
    os.mkfifo(experiments_dir / "curve" / "pipe")
    odd = experiments_dir / "curve" / "run²\n\x1b[31m"
    odd.mkdir()
    (odd / "run.json").write_text('{"status": "running", "started_at": "0001-01-01T00:00:00+14:00"}')
    os.mkfifo(odd / "run.lock")
    assert len(json.loads(terminal("runs", "--experiments_dir", str(experiments_dir), "--json"))) == 4
    terminal("runs", "--experiments_dir", str(experiments_dir))


@pytest.mark.parametrize(
    "settings",
    [
        b"\xff",
        b"- 1",
        b"a: " + b"[" * 5000,
        b"a: &a [*a]",
        b"\n".join(
            b"%c: &%c [%s]" % (b, b, b", ".join([b"*%c" % a] * 20) if a else b"1")
            for a, b in itertools.pairwise([0, *b"abcdefghijkl"])
        ),
    ],
    ids=["no UTF-8", "a list", "deep", "endless", "aliases of aliases"],
)
def test_settings_that_can_not_be_compared_are_an_error(
    settings: bytes, terminal: Terminal, experiments_dir: Path
) -> None:
    """One sentence rather than a crash or a hang."""
    runs = list_runs(experiments_dir)
    (runs[1].path / "settings.yaml").write_bytes(settings)
    terminal(
        "runs", "compare", str(runs[0].path), str(runs[1].path), "--experiments_dir", str(experiments_dir),
        codes=(0, 1),
    )  # fmt: skip


def test_hostile_text_is_escaped_on_the_terminal_and_kept_in_json(
    terminal: Terminal, repository: Repository, experiments_dir: Path
) -> None:
    """Escape sequences, newlines and bidirectional marks in a manifest and in a run's record."""
    hostile = "a\x1b]0;title\x07\nfake row\u202e\x9b2J"
    path = repository.version_dir("codes", 2) / "manifest.json"
    path.write_text(json.dumps(_manifest(2).to_json() | {"run": hostile, "weights": hostile}))
    where = ("--model-repository", str(repository.root))
    assert json.loads(terminal("models", *where, "--json"))[1]["manifest"]["run"] == hostile
    for words in (["models"], ["models", "show", "codes", "2"], ["models", "diff", "codes", "1", "2"]):
        text = terminal(*words, *where, codes=(0, 1))
        if words[-1] != "2" or "show" in words:
            assert r"a\x1b]0;title\x07\nfake row\u202e\x9b2J" in text
    run = list_runs(experiments_dir)[1].path
    record = json.loads((run / "run.json").read_text())
    changed = record | {"experiment": hostile, "status": hostile, hostile: hostile}
    (run / "run.json").write_text(json.dumps(changed))
    where = ("--experiments_dir", str(experiments_dir))
    assert json.loads(terminal("runs", *where, "--json"))[1]["status"] == hostile
    for words in (["runs"], ["runs", "show", str(run)], ["runs", "compare", str(run), str(run)]):
        assert r"\x1b]0;title" in terminal(*words, *where)
    terminal("runs", "show", hostile, *where, codes=(1,))
