"""A manifest's digest: what it notices, and what it leaves free."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from unitrain.repository.integrity import Contradiction, digest, read_checked, read_manifest_json
from unitrain.repository.manifest import Manifest, Metric, read_manifest
from unitrain.signature import Signature, TensorSpec

MANIFEST = Manifest(
    model="linear",
    version=3,
    published_at="2026-01-02T03:04:05.000+00:00",
    run="größe/2026-01-02_03-00-00",
    run_dir="/nowhere",
    step=10,
    epoch=2,
    weights="ema",
    signature=Signature((TensorSpec("x", "FP32", (3, -1)),), (TensorSpec("y", "FP32", ()),), batched=True),
    sha256="0" * 64,
    metric=Metric("val_loss", float("nan"), "min"),
    parity={"y": {"max_abs": 1e-07, "max_rel": 0.30000000000000004}},
)


def test_a_flipped_bit_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    """Each bit of the numbers and names that a parser takes either way, and a thousand of the others."""
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    whole = path.read_bytes()
    assert read_manifest_json(tmp_path) is not None
    draws = random.Random(0).sample(range(8 * len(whole)), 1000)
    for words in (b'"digest"', b'"format": 2', b"1e-07", b"0.30000000000000004", "größe".encode()):
        start = whole.index(words)
        draws += range(8 * start, 8 * (start + len(words)))
    for bit in draws:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(Contradiction):
            read_manifest_json(tmp_path)


def test_a_digest_does_not_depend_on_white_space_and_order(tmp_path: Path) -> None:
    """Another program may have written it anew."""
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    items = list(json.loads(path.read_text()).items())
    random.Random(0).shuffle(items)
    path.write_text(json.dumps(dict(items), indent=None))
    assert read_manifest_json(tmp_path) is not None
    assert digest('{"a": 1e-05}') != digest('{"a": 1E-05}') != digest('{"a": 0.00001}')


def test_a_manifest_read_and_written_again_has_a_digest_that_fits(tmp_path: Path) -> None:
    """As `models rollback` does it, with one of format 1 too."""
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    data = json.loads(path.read_text())
    assert data["format"] == 2
    del data["digest"]
    path.write_text(json.dumps(data | {"format": 1, "metric": None}))
    found = read_manifest(tmp_path)
    assert found is not None
    replace(found, version=4).write(tmp_path)
    again = read_manifest_json(tmp_path)
    assert again is not None
    assert (again["format"], again["version"]) == (2, 4)


@pytest.mark.parametrize("files", [{"../secret": "0"}, {"a/b": "0"}, {"..": "0"}, {"": "0"}, {"data": None}])
def test_a_manifest_leads_nowhere_else(tmp_path: Path, files: dict[str, str]) -> None:
    """Names of files are plain names, and each has a hash."""
    replace(MANIFEST, files=files).write(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(Contradiction, match="no hash of"):
        read_checked(tmp_path, in_memory_bytes=0)
