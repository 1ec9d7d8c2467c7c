"""Tables in CSV files, and arrays in memory, as batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import unitrain

from unitrain.datamodules.arrays import InMemory
from unitrain.datamodules.tabular import CsvTable
from unitrain.errors import DataError, HookError
from unitrain.models.mlp import MLP, MLPClassifier


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """40 rows: a number with every fifth one missing, a category, a constant, and y = 2 * size."""
    path = tmp_path / "table.csv"
    lines = ["size,colour,one,y,kind"]
    for i in range(40):
        size = "" if i % 5 == 0 else str(i)
        lines.append(f"{size},{('red', 'green', 'NA')[i % 3]},1,{2 * i},{'ab'[i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_become_numbers_categories_and_flags(table: Path) -> None:
    """Without any being named, cells tell what is a number; categories end in `other`, gaps have a flag."""
    data = CsvTable(str(table), "y")
    assert data.feature_names == [
        "size", "one", "colour=green", "colour=red", "colour=other", "kind=a", "kind=b", "kind=other",
        "size is missing",
    ]  # fmt: skip
    features, target = data.train["features"], data.train["target"]
    gone = target[:, 0] % 10 == 0
    assert np.array_equal(features[~gone, 0], target[~gone, 0] / 2)
    assert len(set(features[gone, 0])) == 1
    assert features[gone, 0][0] == np.median(features[~gone, 0])
    assert np.array_equal(features[:, -1], gone)
    assert np.array_equal(features[:, 2:5].sum(1), np.ones(len(features)))
    assert np.array_equal(features[:, 4] == 1, target[:, 0] / 2 % 3 == 2)


def test_statistics_standardise_numbers_and_leave_flags(table: Path) -> None:
    """They are of the training rows; a feature that is 0 or 1, or never changes, is not scaled."""
    data = CsvTable(str(table), "y", numbers=["size", "one"], categories=["colour"])
    size = data.train["features"][:, 0]
    assert data.feature_means[0] == pytest.approx(size.mean())
    assert data.feature_stds[0] == pytest.approx(size.std())
    assert data.feature_means[2:] == [0.0] * 4
    assert data.feature_stds[1:] == [1.0] * 5
    assert data.target_means == pytest.approx([data.train["target"].mean()])


def test_a_category_may_be_the_target(table: Path) -> None:
    """Batches have places in `class_names`, int64."""
    data = CsvTable(str(table), "kind", numbers=["y"], target_is_category=True, batch_size=8)
    batch = next(iter(data.train_dataloader()))
    assert data.class_names == ["a", "b"]
    assert torch.equal(batch["target"], (batch["features"][:, 0] / 2 % 2).long())


def test_classes_are_learned_from_a_table(table: Path) -> None:
    """MLPClassifier takes a categorical target; MLP refuses it, with the way out, rather than broadcast it."""
    data = CsvTable(str(table), "kind", numbers=["y"], target_is_category=True, batch_size=8)
    statistics = {"feature_means": data.feature_means, "feature_stds": data.feature_stds}
    classifier = MLPClassifier(**statistics, class_names=data.class_names)
    batch = next(iter(data.train_dataloader()))
    inputs = classifier.preprocess({"features": batch["features"]})
    outputs = classifier(**inputs)
    expected = torch.nn.functional.cross_entropy(outputs["logits"], batch["target"])
    assert torch.equal(classifier.loss(inputs, outputs, batch), expected)
    served = classifier.postprocess(outputs)
    assert torch.allclose(served["probabilities"].sum(1), torch.ones(8))
    regression = MLP(**statistics)
    with pytest.raises(HookError, match=r"targets of shape \[8, 1\], got \[8\]; .*MLPClassifier"):
        regression.loss(inputs, regression(**inputs), batch)
    with pytest.raises(HookError, match="takes classes"):
        classifier.loss(inputs, outputs, {"target": batch["target"][:, None].float()})
    with pytest.raises(ValueError, match="feature_stds above 0"):
        MLP(feature_means=[0.0], feature_stds=[0.0])


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (
            "1,1\n2,1.0\n3,2\n4,2",
            {"target_is_category": True},
            "expected one spelling of a class, as '1', got '1.0'",
        ),
        ("1700000001,1\n1700000002,2\n1700000003,2\n1700000004,3", {}, "subtract an offset from the column"),
        ("1e39,1\n2,1\n3,2\n4,2", {}, "expected a number below 3e38, got '1e39'"),
    ],
)
def test_what_a_table_would_lose_silently_is_refused(
    content: str, options: dict[str, bool], words: str, tmp_path: Path
) -> None:
    """Two spellings of a class, differences below float32's, and values above it."""
    path = tmp_path / "odd.csv"
    path.write_text(f"x,y\n{content}\n")
    with pytest.raises(DataError, match=words):
        CsvTable(str(path), "y", numbers=["x"], validation_share=0.25, **options)


def test_parts_of_a_table_are_disjoint_and_complete(table: Path) -> None:
    """20 %, 10 % and the rest, by the seed; another seed gives another choice."""
    parts = [CsvTable(str(table), "y", test_share=0.1, seed=seed) for seed in (0, 0, 1)]
    rows = [[set(p["target"][:, 0]) for p in (d.train, d.validation, d.test)] for d in parts]
    assert [len(part) for part in rows[0]] == [28, 8, 4]
    assert set.union(*rows[0]) == set(range(0, 80, 2))
    assert rows[0] == rows[1] != rows[2]


def test_another_file_for_the_test_is_encoded_as_training_was(table: Path, tmp_path: Path) -> None:
    """What training never saw is `other`."""
    test = tmp_path / "test.csv"
    test.write_text("y,colour,size\n1,blue,\n2,red,3\n")
    data = CsvTable(str(table), "y", numbers=["size"], categories=["colour"], test_file=str(test))
    (batch,) = data.test_dataloader()
    assert batch["features"][:, 1:].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("old", "new", "options", "told"),
    [
        ("\n7,", "\nseven,", {"numbers": ["size"]}, "line 9, column size: expected a number, got 'seven'"),
        (",14,", ",,", {}, "line 9, column y: expected a target, got ''"),
        ("\n7,green", "\n7", {}, "line 9: expected 5 cells as in line 1, got 4"),
        ("size", "size", {"numbers": ["weight"]}, "line 1: expected the columns weight"),
        ("size", "size", {"validation_share": 0.0}, "expected rows for training and for validation"),
        ("size", "size", {"validation_share": -0.2}, "expected shares of at least 0"),
        ("\n7,", "\n7a,", {}, "line 9, column size: expected a number, with a decimal point, as in most"),
        ("\n7,", "\ninf,", {}, "line 9, column size: expected a finite number, got 'inf'"),
        (",14,", ",NAN,", {}, "line 9, column y: expected a finite number, got 'NAN'"),
        ("size", "size", {"numbers": ["size", "y"]}, "features beside the target, each once, got size, y, y"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_with_its_place(
    table: Path, old: str, new: str, options: dict[str, object], told: str
) -> None:
    """File, line and column, where there are such."""
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=r"table\.csv") as error:
        CsvTable(str(table), "y", **options)  # type: ignore[arg-type]
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("{},5", "expected a number, with a decimal point, as in most"),
        ("id {}", "a text that other rows have too"),
    ],
)
def test_a_column_that_is_no_feature_as_it_stands_is_not_guessed(
    tmp_path: Path, cell: str, told: str
) -> None:
    """Decimal commas, names and dates would be a category a row; columns that are named are taken as they are."""
    path = tmp_path / "table.csv"
    rows = [f"{i};{cell.format(i)};{i}" for i in range(20)]
    path.write_text("\n".join(["x;what;y", *rows]))
    with pytest.raises(DataError, match=f"line 2, column what: .*{told}"):
        CsvTable(str(path), "y", delimiter=";")
    assert CsvTable(str(path), "y", numbers=["x"], delimiter=";").feature_names == ["x"]


def test_arrays_of_a_file_become_batches_of_their_names(tmp_path: Path) -> None:
    """In 32 bits; validation rows are apart from the training's; the chosen names only."""
    np.savez(tmp_path / "data.npz", x=np.arange(50.0)[:, None], y=np.arange(50), unused=np.zeros(3))
    data = InMemory(str(tmp_path / "data.npz"), names=["x", "y"], batch_size=16)
    batches = list(data.train_dataloader())
    assert batches[0]["x"].dtype == torch.float32
    train = {int(y) for batch in batches for y in batch["y"]}
    validation = {int(y) for batch in data.val_dataloader() for y in batch["y"]}
    assert train | validation == set(range(50))
    assert len(train) == 40
    assert all(torch.equal(batch["x"][:, 0].long(), batch["y"]) for batch in batches)


def test_arrays_in_memory_may_bring_their_own_parts() -> None:
    """Then nothing is split."""
    x = np.arange(6, dtype=np.float32)
    data = InMemory({"x": x}, validation={"x": x + 10}, test={"x": x + 20})
    assert next(iter(data.val_dataloader()))["x"].tolist() == (x + 10).tolist()
    assert next(iter(data.test_dataloader()))["x"].tolist() == (x + 20).tolist()
    assert len(data.train["x"]) == 6


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros(3), "y": np.zeros(4)}, "one length above 0, got x 3, y 4"),
        ({"x": np.array(["a", "b"])}, "expected numbers"),
        ({"x": np.zeros(0)}, "one length above 0"),
        ({"x": np.zeros(1)}, "validation_share"),
    ],
)
def test_arrays_that_are_no_data_are_told(arrays: dict[str, np.ndarray], told: str) -> None:
    """Lengths, texts, nothing at all."""
    with pytest.raises(DataError, match=told):
        InMemory(arrays)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", ">f4", ">i4", "longdouble"])
def test_arrays_of_any_width_and_byte_order_can_be_drawn(dtype: str) -> None:
    """Torch knows few; the values stay."""
    batches = InMemory({"x": np.arange(20).astype(dtype)}, batch_size=4).train_dataloader()
    assert {int(value) for batch in batches for value in batch["x"]} < set(range(20))


@pytest.mark.parametrize("other", [{"x": np.zeros((5, 3))}, {"x": np.zeros((5, 2), int)}, {"y": np.zeros(5)}])
def test_validation_arrays_that_differ_from_the_training_s_are_told(other: dict[str, np.ndarray]) -> None:
    """In shape, dtype or name."""
    with pytest.raises(DataError, match=r"validation: expected x float32\[2\] as in training, got"):
        InMemory({"x": np.zeros((5, 2))}, validation=other)


def test_a_missing_file_or_array_is_told(tmp_path: Path) -> None:
    """By its name."""
    with pytest.raises(DataError, match=r"nothing.npz can't be read"):
        InMemory(str(tmp_path / "nothing.npz"))
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="expected the arrays y, got x"):
        InMemory(str(tmp_path / "data.npz"), names=["x", "y"])


def test_yaml_alone_trains_on_a_table(table: Path, tmp_path: Path) -> None:
    """The multilayer perceptron learns y = 2 * size from a file, with no line of code."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"""
experiment: table
seed_everything: 1
model: {{class_path: unitrain.models.mlp.MLP, init_args: {{hidden: [16], lr: 0.02}}}}
data:
  class_path: unitrain.datamodules.tabular.CsvTable
  init_args: {{file: {table}, target: y, categories: [colour], numbers: [size]}}
links:
  data.feature_means: model.init_args.feature_means
  data.feature_stds: model.init_args.feature_stds
  data.target_means: model.init_args.target_means
  data.target_stds: model.init_args.target_stds
trainer: {{max_epochs: 60}}
publish: null
""")
    done = unitrain("fit", "--config", str(settings), "--experiments_dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "table").is_dir()
