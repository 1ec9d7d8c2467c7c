"""The live module answers for itself and stays as it was; copies have all that its forward reads."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from unitrain.errors import ExportError
from unitrain.onnx_export.graph_template import build_template
from unitrain.onnx_export.module_copy import FrozenTrainer, copy_module
from unitrain.onnx_export.module_weights import weights_of
from unitrain.onnx_export.state_outside_weights import ModuleState
from unitrain.onnx_export.undisturbed_forward import live_answers
from unitrain.repository.onnx_session import Tolerance


class Net(LightningModule):
    """A linear layer, and a step to override."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def run(module: LightningModule) -> np.ndarray:
    with torch.no_grad():
        return module.forward(X).detach().numpy()


class Careless(Net):
    """Its forward changes all that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[int] = []
        self.cache: dict[str, object] = {"a": 1}
        self.plain = torch.zeros(2)
        self.count = 0

    def forward(self, x):
        self.calls += 1
        self.seen.append(1)
        self.cache["b"] = x
        self.plain += 1
        self.count += 1
        self.last = x
        self.extra = nn.Linear(1, 1)
        return self.layer(x) + torch.rand(2)


def test_live_module_is_left_as_it_was() -> None:
    """Buffers, plain attributes and their content, new parts, flags and random numbers."""
    torch.manual_seed(0)
    module = Careless()
    module.train()
    module.layer.eval()
    weights, random_state, names = weights_of(module), torch.get_rng_state(), set(vars(module))
    live_answers(module, run, weights)
    assert (int(module.calls), module.seen, module.cache, module.count) == (0, [], {"a": 1}, 0)
    assert module.plain.tolist() == [0, 0]
    assert set(vars(module)) == names
    assert "extra" not in module._modules
    assert (module.training, module.layer.training) == (True, False)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_live_module_answers_in_evaluation_mode_with_its_trainer_frozen() -> None:
    """`self.log` in forward does nothing; the epoch is the trainer's."""

    class Logs(Net):
        def forward(self, x):
            self.log("mean", x.mean())
            return self.layer(x) * (self.current_epoch + 1) * (2 if self.training else 1)

    module = Logs()
    module._trainer = SimpleNamespace(current_epoch=4, global_step=9)
    with pytest.warns(UserWarning, match="barebones"):
        answers = live_answers(module, run, weights_of(module))
    np.testing.assert_allclose(answers, 5 * module.layer(X).detach().numpy(), rtol=1e-5)
    assert module._trainer.current_epoch == 4


class Holds(Net):
    """Holds what copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.file = Path(__file__).open()  # noqa: SIM115
        self.numbers = (i for i in range(3))
        self.loader = iter(torch.utils.data.DataLoader([1, 2]))
        self.generated = self.layer(X)
        self.nested = {"file": self.file, "scale": 2.0, "parts": [self.layer]}
        self.scaled = lambda y: y * self.nested["scale"]

    def forward(self, x):
        with self.lock:
            return self.scaled(self.nested["parts"][0](x))


def test_copy_of_a_module_that_deepcopy_refuses_answers_as_it_does() -> None:
    """What forward needs is there; what it has in lists, dicts and closures is the copy's own."""
    module = Holds()
    clone, skipped = copy_module(module)
    module.file.close()
    assert set(skipped) == {"file", "numbers", "loader", "nested['file']"}
    expected = run(module)
    with torch.no_grad():
        module.layer.weight.zero_()
    module.nested["scale"] = 100.0
    np.testing.assert_allclose(run(clone), expected)
    assert clone.nested["parts"][0] is clone.layer
    assert not clone.training


def test_attribute_that_forward_needs_and_no_copy_can_have_is_named() -> None:
    """The refusal has the attribute's name and its type."""

    class Reads(Net):
        def __init__(self) -> None:
            super().__init__()
            self.file = Path(__file__).open()  # noqa: SIM115

        def forward(self, x):
            return self.layer(x) * len(self.file.name)

    module = Reads()
    with module.file, pytest.raises(ExportError, match=r"self\.file, which can't be copied .*TextIOWrapper"):
        build_template(module, {"x": X}, opset=20, tolerance=Tolerance())


class Stateful(Net):
    """Reads state of every kind, beside some that it does not read."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._private = 1.0
        self.entries = {"a": {"b": [1.0]}}
        self.plain = torch.ones(2)
        self.array = np.ones(2, np.float32)
        self.helper = SimpleNamespace(offset=1.0)
        self.save_hyperparameters({"factor": 1.0})
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        self.rnn = nn.GRU(3, 2, batch_first=True)
        self.unread: list[int] = []

    def forward(self, x):
        y = self.norm(self.layer(x)) * self._private * self.entries["a"]["b"][0] * self.plain
        y = y * torch.from_numpy(self.array) + self.helper.offset * self.hparams.factor * self.scale
        y = y + self.rnn(x[:, None])[1][0]
        return y * (self.current_epoch + 1) + (getattr(self, "late", 0.0))


CHANGES = {
    "a private number": lambda m: setattr(m, "_private", 2.0),
    "an entry of a nested list": lambda m: m.entries["a"]["b"].__setitem__(0, 2.0),
    "a plain tensor in place": lambda m: m.plain.mul_(2),
    "an array in place": lambda m: m.array.__imul__(2),
    "an attribute of a helper": lambda m: setattr(m.helper, "offset", 2.0),
    "a hyper-parameter": lambda m: m.hparams.__setitem__("factor", 2.0),
    "the epoch": lambda m: setattr(m, "_trainer", FrozenTrainer(current_epoch=3, global_step=1)),
    "an attribute that was missing": lambda m: setattr(m, "late", 2.0),
    "a layer replaced": lambda m: setattr(m, "layer", nn.Sequential(m.layer, nn.Tanh())),
    "a hook": lambda m: m.layer.register_forward_hook(lambda *_: None),
}


@pytest.fixture
def stateful() -> Stateful:
    torch.manual_seed(0)
    module = Stateful()
    module._trainer = FrozenTrainer(current_epoch=0, global_step=0)
    return module


@pytest.mark.parametrize("change", CHANGES)
def test_state_that_forward_reads_is_seen_when_it_changes(change: str, stateful: Stateful) -> None:
    """And a copy that is taken then answers as the live module does."""
    state = ModuleState.of(stateful, run)
    assert state.holds(stateful)
    CHANGES[change](stateful)
    assert not state.holds(stateful)
    np.testing.assert_allclose(run(ModuleState.of(stateful, run).module), run(stateful.eval()), rtol=1e-5)


def test_class_attribute_is_state_too(stateful: Stateful, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found where forward finds it."""
    state = ModuleState.of(stateful, run)
    monkeypatch.setattr(Stateful, "scale", 3.0)
    assert not state.holds(stateful)


def test_weights_and_what_forward_does_not_read_are_no_state(stateful: Stateful) -> None:
    """A step, a list that grows, a gradient: the graph stays, weights are swapped in it."""
    state = ModuleState.of(stateful, run)
    with torch.no_grad():
        for parameter in stateful.parameters():
            parameter.add_(1)
    stateful.unread.append(1)
    stateful.new = 3
    stateful.train()
    stateful(X).sum().backward()
    assert state.holds(stateful)
