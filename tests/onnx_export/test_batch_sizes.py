"""Batches of every size are answered as torch answers them, each row by itself, or the module is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from zoo import MLP

from unitrain.errors import ExportError, HookError
from unitrain.module import UnitrainModule, batch_inputs
from unitrain.onnx_export.batch_sizes import compare_batches, distinct_rows
from unitrain.onnx_export.graph_template import Template, build_template
from unitrain.onnx_export.served_graph import ServedGraph
from unitrain.repository.onnx_session import Tolerance, run_onnx


def template(module, x: torch.Tensor | None = None, **further: torch.Tensor) -> Template:
    sample = {"x": torch.randn(6, 4) if x is None else x, **further}
    return build_template(module, sample, opset=20, tolerance=Tolerance(), max_rows=1024)


class Branches(MLP):
    def forward(self, x):
        return self.net(x) * (2.0 if x.size(0) > 900 else 1.0)


class SubtractsMean(MLP):
    def forward(self, x):
        return self.net(x) - x.mean(0)[:2]


class Softmax(MLP):
    def forward(self, x):
        return {"share": self.net(x).softmax(0)}


@pytest.mark.parametrize("kind", [Branches, SubtractsMean, Softmax])
def test_module_that_depends_on_its_batch_is_refused(kind: type) -> None:
    """A branch on the batch's size, and answers that depend on the other rows; one real row is enough to see it."""
    words = (
        r"a row's answer depends on the other rows of its batch: .* so forward must treat each row by itself"
    )
    with pytest.raises(ExportError, match=words):
        template(kind())
    with pytest.raises(ExportError, match=words):
        template(kind(), torch.randn(1, 4))


def mixing(module, max_rows: int = 16, **sample: np.ndarray) -> str | None:
    """The failure of torch's answers to rows in several batches."""
    served = ServedGraph(module.eval(), tuple(sample))
    return compare_batches(
        served, None, sample, tolerance=Tolerance(), batched=True, max_rows=max_rows, limit_s=10.0
    ).failure


UNIFORM = np.random.default_rng(0).uniform(-1, 1, (16, 4)).astype(np.float32)


class Outlying(MLP):
    """Neighbours matter only beyond what the sample has."""

    def forward(self, x):
        return self.net(x) + (x.abs().max() > 1)


class Vanishing(MLP):
    """Neighbours matter only where one is nothing but zeros."""

    def forward(self, x):
        return self.net(x) + (x.abs().sum(1) == 0).any()


@pytest.mark.parametrize("kind", [Outlying, Vanishing])
def test_neighbours_that_the_sample_has_no_like_of_are_tried(kind: type) -> None:
    """Eight times as large, and zeros."""
    assert "a row's answer depends on the other rows" in mixing(kind(), x=UNIFORM)


class Overflows(MLP):
    """Large rows answer infinity and NaN, for themselves alone."""

    def forward(self, x):
        large = (x * 20).exp()
        return self.net(x) * 0 + (large.sum(1, keepdim=True) - large.mean(1, keepdim=True) * 3) / x.norm(
            dim=1, keepdim=True
        )


class Rejects(MLP):
    def forward(self, x):
        if x.abs().max() > 1:
            raise ValueError("x must lie in [-1, 1]")
        return self.net(x)


class Looks(MLP):
    """Indexes a table by an integer input, beside floats."""

    def forward(self, x, n):
        return self.net(x) + torch.arange(8.0)[n][:, None]


@pytest.mark.parametrize("kind", [Overflows, Rejects])
def test_outlying_neighbours_are_no_false_alarm(kind: type) -> None:
    """Their own answers do not count, nor does a forward that rejects them."""
    assert mixing(kind(), x=UNIFORM) is None


def test_integers_of_outlying_neighbours_stay_as_they_are() -> None:
    """Eight times an index is none."""
    assert mixing(Looks(), x=UNIFORM, n=np.arange(16) % 8) is None


class DependsOnTwo(MLP):
    def forward(self, x):
        return self.net(x - x.mean(0, keepdim=True))


@pytest.mark.parametrize("max_rows", [2, 8, 15])
def test_rows_are_compared_with_their_answers_alone_below_sixteen_rows_too(max_rows: int) -> None:
    """`publish.model_config.max_batch_size` may be small."""
    assert "a row's answer depends on the other rows" in mixing(DependsOnTwo(), max_rows, x=UNIFORM)
    assert mixing(DependsOnTwo(), 1, x=UNIFORM) is None, "a server never sends two"


class BatchStatistics(MLP):
    def forward(self, x):
        return self.net(nn.functional.batch_norm(x, None, None, training=True))


class CountsByLen(MLP):
    def forward(self, x):
        return self.net(x) + torch.zeros(1, 2).expand(len(x), -1)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (BatchStatistics, "with 1 rows forward fails: .* statistics of its batch in evaluation as well, .* running statistics"),
        (CountsByLen, r"takes 6 rows of x, as the sample has; use x\.shape\[0\] instead of len\(x\)"),
    ],
)  # fmt: skip
def test_refusal_of_a_batch_names_a_way_out(kind: type, words: str) -> None:
    """Torch's own words name neither the cause nor what to do."""
    with pytest.raises(ExportError, match=words):
        template(kind())


class Passes(MLP):
    """Outputs that are the input, a view of it, and one tensor under two names."""

    def forward(self, x):
        y = self.net(x)
        return {"same": x, "view": x.detach(), "y": y, "again": y, "weight": y * self.net[0].bias[0]}


def test_outputs_that_are_inputs_or_other_outputs_are_served() -> None:
    """Each has a value of its own in the graph, and weights are still swapped."""
    made = template(Passes())
    assert made.swappable
    assert [v.name for v in made.graph.structure.graph.input] == ["x"]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    answers = run_onnx(made.graph.to_model(), {"x": x})
    assert list(answers) == ["same", "view", "y", "again", "weight"]
    np.testing.assert_array_equal(answers["same"], x)
    np.testing.assert_array_equal(answers["view"], x)
    np.testing.assert_array_equal(answers["again"], answers["y"])


class Stars(MLP):
    def forward(self, *args):
        return self.net(args[0])


@pytest.mark.parametrize("example", [torch.zeros(2, 4), (torch.zeros(2, 4),)])
def test_arguments_without_names_are_refused(example) -> None:
    """`example_input_array` has values for them, and no names."""
    module = Stars()
    module.example_input_array = example
    with pytest.raises(HookError, match=r"give each input a named argument in the place of \*args"):
        batch_inputs(module, (torch.zeros(2, 4), torch.zeros(2)))


class Decides(MLP):
    def forward(self, x):
        return {"class": self.net(x).argmax(1), "length": x.norm(dim=1)}


class Squeezes(MLP):
    def forward(self, x):
        return self.net(x)[:, :1].squeeze()


@pytest.mark.parametrize("kind", [Decides, Squeezes, MLP])
def test_outputs_of_one_value_a_row_pass(kind: type) -> None:
    """`[rows]`, also where `squeeze()` takes the batch axis of a single row away."""
    made = template(kind())
    assert made.signature.batched
    answers = run_onnx(made.graph.to_model(), {"x": np.ones((1, 4), np.float32)})
    assert all(len(answer) == 1 for answer in answers.values())


def test_rows_beyond_the_real_ones_are_the_same_at_every_size_and_all_different() -> None:
    """Numbers are mixtures; integers are those of a real row."""
    sample = {"x": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32), "n": np.array([1, 5, 9])}
    many, few = distinct_rows(sample, 50), distinct_rows(sample, 7)
    assert all(np.array_equal(many[name][:7], few[name]) for name in sample)
    assert len(np.unique(many["x"], axis=0)) == 50
    assert set(many["n"]) == {1, 5, 9}


class WithLoss(MLP):
    """As Hugging Face's models: labels make a loss."""

    def forward(self, x, mask=None, labels=None):
        logits = self.net(x) if mask is None else self.net(x) * mask
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def test_labels_and_losses_are_not_served() -> None:
    """A mask of ones, which changes nothing in this sample, is an input all the same."""
    made = template(WithLoss(), mask=torch.ones(6, 2), labels=torch.tensor([0, 1, 0, 1, 1, 0]))
    assert made.served.names == ("x", "mask")
    assert [output.name for output in made.signature.outputs] == ["logits"]
    assert made.notes == ("labels: not served as input, since only a loss depends on it",)


class MeanToo(MLP):
    def forward(self, x):
        y = self.net(x)
        return {"y": y, "loss": y.square().mean()}


def test_output_that_is_one_number_is_left_out_and_alone_is_refused() -> None:
    """Triton can't load it; the batch axis of the others stays."""
    made = template(MeanToo())
    assert made.notes == ("loss: not served as output, since it is one number a batch",)
    assert str(made.signature) == "(x: FP32[4]) -> (y: FP32[2]), each with a leading batch axis"

    class Only(MLP):
        def forward(self, x):
            return {"loss": self.net(x).mean()}

    with pytest.raises(HookError, match="returns only loss, one number for a whole batch"):
        template(Only())


class Collides(UnitrainModule):
    """Its names are those that the exporter gives to inner values."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.net = nn.Linear(7, 2)

    def forward(self, val_0, cat):
        y = self.net(torch.cat([val_0, self.embed(cat)], 1))
        return {"linear": y, "embedding": torch.cond(y.sum() > 0, lambda y: y + 1, lambda y: y - 1, (y,))}


def test_names_that_the_exporter_uses_are_served_under_their_own_name() -> None:
    """Inner values give way; weights are swapped still, and inner graphs read the renamed values."""

    class Plain(Collides):
        def forward(self, val_0, cat):
            y = self.net(torch.cat([val_0, self.embed(cat)], 1))
            return {"linear": y, "embedding": torch.cat([y, y], 1)}

    sample = {"val_0": torch.randn(6, 4), "cat": torch.tensor([0, 1, 2, 3, 4, 0])}
    made = build_template(Plain(), sample, opset=20, tolerance=Tolerance())
    assert made.swappable
    assert [v.name for v in made.graph.structure.graph.input] == ["val_0", "cat"]
    assert [v.name for v in made.graph.structure.graph.output] == ["linear", "embedding"]


@pytest.mark.parametrize(
    "layer",
    [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm],
)
def test_normed_weights_are_swapped(layer) -> None:
    """Old hooks and new parametrizations; the trained graph answers as the module does."""

    class Normed(MLP):
        def __init__(self):
            super().__init__()
            self.net[0] = layer(self.net[0])

    module = Normed().eval()
    made = template(module)
    x = torch.randn(3, 4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
        expected = module(x).numpy()
    from unitrain.onnx_export.module_weights import weights_of

    got = run_onnx(made.with_weights(weights_of(module)).to_model(), {"x": x.numpy()})["output"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


class MatrixExponential(MLP):
    def forward(self, x):
        return torch.matrix_exp(x[:, :2, None] * x[:, None, :2])


class Packs(MLP):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 2, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1][0]


class Caches(MLP):
    def forward(self, x):
        class DynamicCache:
            pass

        return {"y": self.net(x), "past_key_values": DynamicCache()}


class Sparse(MLP):
    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.eye(4).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.adjacency, x.T).T


REFUSED = {
    MatrixExponential: "ONNX has no operator for torch's matrix_exp: write it with other operators",
    Packs: "it can't trace pack_padded_sequence: run the recurrent layer on the padded sequences",
    Caches: "set use_cache=False",
    Sparse: r"make the sparse tensor dense with to_dense\(\)",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusal_names_a_way_out(kind: type) -> None:
    """And never advises against branches where there are none."""
    sample = {"x": torch.randn(6, 4)}
    if kind is Packs:
        sample = {"x": torch.randn(6, 5, 4), "lengths": torch.tensor([5, 4, 3, 2, 1, 5])}
    with pytest.raises((ExportError, HookError), match=REFUSED[kind]) as caught:
        build_template(kind(), sample, opset=20, tolerance=Tolerance())
    assert "branches" not in str(caught.value)
