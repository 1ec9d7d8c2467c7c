"""Fingerprint of the validation data: equal for equal samples, and for nothing else."""

import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import unitrain
from unitrain.training.data_fingerprint import SampleHash, UnhashableBatchError

OFF = {"publish": None, "embeddings": None, "summaries": None, "early_stopping": None}


def hashed(*batches: Any) -> str:
    """The hash of a loader's batches."""
    hashing = SampleHash()
    for batch in batches:
        hashing.add(batch)
    return hashing.hexdigest()


def test_fingerprint_is_of_values_dtypes_shapes_and_names() -> None:
    """Equal batches have equal ones, however their tensors lie in memory; all else differs."""
    x = torch.arange(6.0).reshape(3, 2)
    batch = {"x": x, "n": 3, "names": ["a", "b", "c"]}
    turned = {"x": x.T.contiguous().T, "n": 3, "names": ("a", "b", "c")}
    assert hashed(batch) == hashed(turned)
    others = [
        batch | {"x": x + 1},
        batch | {"x": x.double()},
        batch | {"x": x.reshape(3, 1, 2)},
        batch | {"n": 4},
        batch | {"names": ["a", "b", "d"]},
        batch | {"names": ["ab", "", "c"]},
        {"y": x, "n": 3, "names": ["a", "b", "c"]},
        {"x": x, "names": ["a", "b", "c"]},
        [batch],
        [x, 3, ["a", "b", "c"]],
        {"x": x[:2], "n": 3, "names": ["a", "b"]},
        {"x": x.flip(0), "n": 3, "names": ["a", "b", "c"]},
    ]
    assert len({hashed(other) for other in others} | {hashed(batch)}) == len(others) + 1


def test_fingerprint_takes_a_column_that_numpy_made_of_a_row() -> None:
    """Such a column of one value a row has a step of 0 bytes, which torch can't look at as bytes."""
    column = torch.as_tensor(np.arange(5)[:, None])
    assert column.stride() == (1, 0)
    assert hashed(column) == hashed(torch.arange(5).reshape(5, 1))
    assert hashed(torch.tensor(2.0)) != hashed(torch.tensor(3.0))


@dataclasses.dataclass
class Pair:
    """A batch as a dataclass."""

    x: Any
    y: Any


def drawn_samples(rng: np.random.Generator) -> tuple[int, Any]:
    """A number of samples, and a function that gives those from `first` to `end` as a batch."""
    count = int(rng.integers(2, 40))
    shape = tuple(rng.integers(1, 4, rng.integers(0, 3)))
    x = torch.from_numpy(rng.normal(size=(count, *shape)))
    y = rng.integers(0, 9, (count,)).astype(rng.choice(["int16", "uint8", "float32"]))
    words = ["".join(rng.choice(list("abc"), rng.integers(0, 4))) for _ in range(count)]
    numbers = [int(n) for n in rng.integers(0, 9, count)]
    dtype = [torch.float32, torch.bfloat16, torch.complex64, torch.bool][rng.integers(4)]
    layouts = [
        lambda s: {"x": x[s].to(dtype), "inner": {"y": y[s], "of": (words[s],)}, "scale": 0.5},
        lambda s: (x[s], [torch.from_numpy(y[s]), np.array(words[s])], None),
        lambda s: Pair(x[s].to(dtype), {"numbers": numbers[s], "size": torch.tensor(3)}),
        lambda s: x[s],
        lambda s: words[s],
    ]
    return count, layouts[rng.integers(len(layouts))]


@pytest.mark.parametrize("seed", range(40))
def test_fingerprint_does_not_depend_on_the_batch_size(seed: int) -> None:
    """Random nestings, dtypes and shapes, cut in two random ways; one sample less differs."""
    rng = np.random.default_rng(seed)
    count, batch_of = drawn_samples(rng)

    def cut(end: int) -> str:
        places = sorted({0, end, *rng.integers(0, end + 1, 3).tolist()})
        return hashed(*(batch_of(slice(a, b)) for a, b in itertools.pairwise(places)))

    assert cut(count) == cut(count) == hashed(batch_of(slice(0, count)))
    assert cut(count - 1) != cut(count)


def test_samples_that_can_not_be_told_apart_are_hashed_by_the_batch() -> None:
    """A graph's nodes and edges, say; what has no bytes of its own is refused."""
    graph = {"nodes": torch.zeros(5, 2), "edges": torch.zeros(2, 7)}
    hashing = SampleHash()
    hashing.add(graph)
    assert hashing.whole_batches
    assert hashed(graph) == hashing.hexdigest() != hashed(graph, graph)
    assert hashed(graph) != hashed(graph | {"edges": torch.ones(2, 7)})
    with pytest.raises(UnhashableBatchError, match=r"a batch holds a builtins\.object"):
        hashed({"x": torch.zeros(2), "other": object()})


def test_hashing_a_hundred_thousand_samples_takes_less_than_a_second() -> None:
    """Of 1 kB each, in batches of 64; CPU time of this process, the best of three."""
    batches = torch.randn(100_000, 256).split(64)
    took = []
    for _ in range(3):
        started = time.thread_time()
        hashed(*batches)
        took.append(time.thread_time() - started)
    assert min(took) < 1.0


def fingerprint(settings: Path, data: str = "Points", **overrides: Any) -> Any:
    """`data_fingerprint` and `no_fingerprint` in the record of a short run on one of the project's data modules."""
    given = {"data.class_path": f"datamodules.points.{data}", "trainer.max_epochs": 2, "links": {}}
    plain = {"model.class_path": "models.scripted.Scripted", "model.init_args": {"values": [0.5, 0.4]}}
    run = unitrain.fit(settings, OFF | plain | given | overrides, quiet=True)
    record = json.loads((run.run_dir / "run.json").read_text())
    return record["data_fingerprint"], record["no_fingerprint"]


def test_runs_on_the_same_validation_data_have_the_same_fingerprint(settings: Path, project: Path) -> None:
    """Whatever the batch size, the model and the sanity check; what differs late in the set differs."""
    path = project / "datamodules" / "points.py"
    path.write_text(
        path.read_text() + "\n\nclass Cut(Points):\n"
        "    def __init__(self, batch_size: int = 64, last: float = 0.0, twice: bool = False) -> None:\n"
        "        super().__init__()\n"
        "        self.size, self.twice = batch_size, twice\n"
        "        self.val['x'][-1] += last\n\n"
        "    def val_dataloader(self):\n"
        "        loader = ArrayLoader(self.val, batch_size=self.size)\n"
        "        return [loader, loader] if self.twice else loader\n"
    )
    first, reason = fingerprint(settings, "Cut")
    assert first
    assert reason is None
    small = {"data.init_args": {"batch_size": 7}}
    assert fingerprint(settings, "Cut", **small, **{"trainer.num_sanity_val_steps": 0})[0] == first
    assert fingerprint(settings, "Cut", **{"data.init_args": {"last": 1e-3}})[0] not in (None, first)
    assert fingerprint(settings, "Cut", **{"trainer.limit_val_batches": 3}, **small)[0] not in (None, first)
    two = {"model.class_path": "models.scripted.TwoSets", "monitor": {"metric": "val_loss/dataloader_idx_1"}}
    assert fingerprint(settings, "Cut", **two, **{"data.init_args": {"twice": True}})[0] not in (None, first)


@pytest.mark.parametrize("sanity", [0, 2])
def test_loader_that_is_not_repeatable_has_no_fingerprint(settings: Path, sanity: int) -> None:
    """It is seen by the sanity check, before the first validation has ended, or by the second validation."""
    seen = fingerprint(
        settings, "NoisyValidation",
        **{"trainer.num_sanity_val_steps": sanity, "trainer.max_epochs": 1 if sanity else 2},
    )  # fmt: skip
    assert seen[0] is None
    assert "differ from one validation to the next" in seen[1]


def test_stream_that_repeats_itself_has_a_fingerprint(settings: Path) -> None:
    """An IterableDataset of which nobody knows the length."""
    settings.write_text(settings.read_text().replace("links:", "#"))
    given = {
        "model.class_path": "models.small.Plain",
        "model.init_args": {},
        "trainer.limit_train_batches": 2,
    }
    assert fingerprint(settings, "Streams", **given)[0] is not None


def test_fingerprint_is_kept_by_a_resumed_run(settings: Path) -> None:
    """It is compared once more, and gone where the data have changed since."""
    given = {"data.class_path": "datamodules.points.Points", "trainer.max_epochs": 2, "links": {}}
    plain = {"model.class_path": "models.scripted.Scripted", "model.init_args": {"values": [0.5, 0.4]}}
    run = unitrain.fit(settings, OFF | plain | given, quiet=True).run_dir
    record = json.loads((run / "run.json").read_text())
    unitrain.resume(run, {"trainer.max_epochs": 3}, quiet=True)
    again = json.loads((run / "run.json").read_text())
    assert again["data_fingerprint"] == record["data_fingerprint"] is not None
    unitrain.resume(run, {"trainer.max_epochs": 4, "data.init_args.n": 400}, quiet=True)
    assert json.loads((run / "run.json").read_text())["data_fingerprint"] is None
