"""The real signals, their split and their augmentation."""

import numpy as np
import pytest
import torch

from examples.signals_clustering.basic_motions import CLASS_NAMES, load_basic_motions
from examples.signals_clustering.data import Augmentation, BasicMotions
from unitrain.errors import HookError


@pytest.fixture(scope="module")
def data() -> BasicMotions:
    return BasicMotions(repeats=2)


def plain(**changes: float) -> Augmentation:
    """No change but the circular shift, except for what is named."""
    off = {"max_stretch": 0.0, "gain": 0.0, "channel_gain": 0.0, "mixup": 0.0}
    return Augmentation([0.0] * 6, **(off | changes))


def some_signals(n: int = 8) -> dict[str, torch.Tensor]:
    signals = torch.randn(n, 6, 100, generator=torch.Generator().manual_seed(0))
    return {"signals": signals, "label": torch.arange(n)}


@pytest.mark.parametrize("part", ["TRAIN", "TEST"])
def test_each_part_has_ten_signals_of_each_class(part: str) -> None:
    """40 signals of 6 channels and 100 steps, float32 and finite."""
    signals, labels = load_basic_motions(part)
    assert signals.shape == (40, 6, 100)
    assert signals.dtype == np.float32
    assert np.isfinite(signals).all()
    assert np.bincount(labels).tolist() == [10] * len(CLASS_NAMES)


def test_signals_equal_those_of_their_own_package() -> None:
    """Aeon's loader, slow to import, gives the same values and classes."""
    from aeon import datasets

    signals, names = datasets.load_basic_motions(split="test")
    ours = load_basic_motions("TEST")
    assert np.allclose(ours.signals, signals)
    assert [CLASS_NAMES[i].lower() for i in ours.labels] == [name.lower() for name in names]


def test_validation_is_carved_out_of_the_training_signals(data: BasicMotions) -> None:
    """32 and 8 of the 40, two of each class for validation, none in both."""
    assert not set(data.train_rows) & set(data.validation_rows)
    assert sorted([*data.train_rows, *data.validation_rows]) == list(range(40))
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2, 2]


def test_no_held_out_signal_takes_part_in_training_or_validation(data: BasicMotions) -> None:
    """Neither as it is nor as a circular shift, in any batch that is not augmented."""
    held_out = {row.tobytes() for row in load_basic_motions("TEST").signals}
    used = np.concatenate([data.train.signals, *(b["signals"].numpy() for b in data.val_dataloader())])
    for signal in used:
        assert not any(np.roll(signal, shift, axis=-1).tobytes() in held_out for shift in range(100))


def test_statistics_come_from_the_training_signals_alone(data: BasicMotions) -> None:
    """They standardise the training signals exactly, one value a channel."""
    z = (data.train.signals - np.array(data.channel_means)[:, None]) / np.array(data.channel_stds)[:, None]
    assert np.allclose(z.mean((0, 2)), 0, atol=1e-5)
    assert np.allclose(z.std((0, 2)), 1, atol=1e-5)


def test_validation_has_fixed_shifts_of_each_signal(data: BasicMotions) -> None:
    """40 rows, the same each time; the first 8 are the signals as they are."""
    first, second = (next(iter(data.val_dataloader())) for _ in range(2))
    assert first["signals"].shape == (40, 6, 100)
    assert torch.equal(first["signals"], second["signals"])
    assert np.array_equal(first["signals"][:8].numpy(), data.validation.signals)
    assert np.array_equal(first["signals"][8:16].numpy(), np.roll(data.validation.signals, 20, axis=-1))
    assert first["label"].tolist() == data.validation.labels.tolist() * 5


def test_test_loader_has_the_held_out_signals(data: BasicMotions) -> None:
    """All 40, as they are."""
    batch = next(iter(data.test_dataloader()))
    assert np.array_equal(batch["signals"].numpy(), load_basic_motions("TEST").signals)


def test_an_epoch_is_many_different_draws_of_each_signal(data: BasicMotions) -> None:
    """64 rows of 32 signals in two passes, none twice; the next epoch's differ."""
    loader = data.train_dataloader()
    first = torch.cat([batch["signals"] for batch in loader])
    loader.set_epoch(1)
    second = torch.cat([batch["signals"] for batch in loader])
    assert first.shape == (64, 6, 100)
    assert len({row.numpy().tobytes() for row in torch.cat([first, second])}) == 128


def test_augmentation_is_a_function_of_its_generator() -> None:
    """The same seed gives the same batch, another one another; the batch itself is left as it was."""
    augmentation = plain(max_stretch=0.25, gain=0.2, channel_gain=0.1, mixup=0.5)
    batch = some_signals()
    before = batch["signals"].clone()
    first, again, other = (
        augmentation(batch, torch.Generator().manual_seed(s))["signals"] for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(batch["signals"], before)


def test_shift_keeps_a_constant_signal() -> None:
    """Shifting, stretching and mixing constants gives constants: the end is joined to the beginning."""
    batch = {"signals": torch.full((8, 6, 100), 2.5), "label": torch.zeros(8)}
    drawn = plain(max_stretch=0.5, mixup=1.0)(batch, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn["signals"], batch["signals"])


def test_gain_turns_about_the_channel_mean() -> None:
    """A signal at its channel's mean stays there, however it is amplified."""
    means = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    batch = {"signals": torch.tensor(means)[:, None].expand(8, 6, 100), "label": torch.zeros(8)}
    drawn = Augmentation(means, 0.0, 0.5, 0.5, 0.0)(batch, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn["signals"], batch["signals"])


def test_stretch_changes_the_period_by_its_factor_at_most() -> None:
    """A wave of 10 periods has between 10 / 1.5 and 10 * 1.5 after a stretch of 0.5, and not always 10."""
    wave = torch.sin(2 * torch.pi * 10 * torch.arange(100) / 100)
    batch = {"signals": wave.expand(64, 6, 100), "label": torch.zeros(64)}
    drawn = plain(max_stretch=0.5)(batch, torch.Generator().manual_seed(0))["signals"][:, 0]
    periods = torch.fft.rfft(drawn).abs().argmax(1)
    assert periods.min() >= 6
    assert periods.max() <= 16
    assert len(periods.unique()) > 3


def test_mixture_keeps_most_of_the_signal_that_gives_the_label() -> None:
    """Of two constant signals mixed, each stays nearer to its own value."""
    values = torch.tensor([0.0, 1.0] * 16)
    batch = {"signals": values[:, None, None].expand(32, 6, 100), "label": values}
    drawn = plain(mixup=1.0)(batch, torch.Generator().manual_seed(0))
    own = (drawn["signals"][:, 0, 0] - values).abs()
    assert own.max() <= 0.5
    assert own.max() > 0.1
    assert torch.equal(drawn["label"], values)


@pytest.mark.parametrize("n", [0, 10])
def test_a_part_without_signals_is_refused(n: int) -> None:
    """A class with no validation, or no training signal left, is told with the possible range."""
    with pytest.raises(HookError, match="1 to 9"):
        BasicMotions(validation_per_class=n)
