"""The example that makes digits: its data, its model with two optimizers, its client, scores and whole way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT
from terminal import Terminal

import unitrain
from examples.generative.client import DigitsIO
from examples.generative.data import DigitsWithCodes
from examples.generative.reference import mixture_samples
from examples.generative.scores import (
    DigitFeatures,
    explained_variance,
    frechet_distance,
    two_sample_accuracy,
)
from unitrain.client import ModelInfo
from unitrain.datamodules.digit_arrays import load_digit_arrays
from unitrain.models.adversarial_autoencoder import AdversarialAutoencoder
from unitrain.signature import Signature, TensorSpec

FOLDER = ROOT / "examples" / "generative"
README, SETTINGS = FOLDER / "README.md", FOLDER / "settings.yaml"


def test_digits_are_scikit_learns_in_three_parts() -> None:
    """All 1,797, none twice, the same parts each time."""
    from sklearn.datasets import load_digits

    parts = [load_digit_arrays(part) for part in ("train", "validation", "held_out")]
    assert [len(p.labels) for p in parts] == [1197, 200, 400]
    ours = np.concatenate([np.hstack([p.images.reshape(-1, 64), p.labels[:, None]]) for p in parts])
    theirs = np.hstack([load_digits().data, load_digits().target[:, None]])
    assert np.array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))
    assert np.array_equal(load_digit_arrays("held_out").images, parts[2].images)


def test_codes_are_new_in_training_and_fixed_in_validation() -> None:
    """Standard normal ones; each batch has its own."""
    data = DigitsWithCodes(code_size=5, batch_size=64)
    first, second, *_ = data.train_dataloader()
    assert first["code"].shape == (64, 5)
    assert not torch.equal(first["code"], second["code"])
    validation = next(iter(data.val_dataloader()))
    assert torch.equal(validation["code"], next(iter(data.val_dataloader()))["code"])
    assert float(validation["code"].std()) == pytest.approx(1, abs=0.1)


def test_one_graph_encodes_rebuilds_and_makes() -> None:
    """What is made of an image's own code is its reconstruction, in the data's units."""
    model = AdversarialAutoencoder(code_size=3, hidden=[16]).eval()
    image = torch.from_numpy(load_digit_arrays("held_out").images[:4])

    @torch.no_grad()
    def ask(code: torch.Tensor) -> dict[str, torch.Tensor]:
        return model.postprocess(model(**model.preprocess({"image": image, "code": code})))

    once = ask(torch.zeros(4, 3))
    again = ask(once["encoded"])
    assert torch.allclose(again["generated"], again["reconstruction"])
    assert not torch.allclose(once["generated"], once["reconstruction"])
    assert once["reconstruction"].shape == (4, 1, 8, 8)
    assert float(once["reconstruction"].min()) >= 0
    assert 1 < float(once["reconstruction"].max()) <= 16


def test_critic_learns_what_the_encoder_unlearns() -> None:
    """Codes that are told apart cost the encoder more and the critic less than those that are not."""
    torch.manual_seed(0)
    model = AdversarialAutoencoder(code_size=2, gradient_penalty=0.0)
    drawn, far = torch.randn(256, 2), torch.randn(256, 2) + 4
    optimizer = torch.optim.Adam(model.critic.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model.critic_loss(drawn, far).backward()
        optimizer.step()
    assert model.critic_loss(drawn, far) < 0.5 * model.critic_loss(drawn, torch.randn(256, 2))

    def cost(codes: torch.Tensor) -> float:
        same = {"image": torch.zeros(256, 1, 8, 8)}
        outputs = {"encoded": codes, "reconstruction": same["image"]}
        return model.loss(same, outputs, {})["adversarial"].item()

    assert cost(far) > 2 * cost(torch.randn(256, 2))


def test_training_with_two_optimizers_resumes_to_the_bit(tmp_path: Path) -> None:
    """Three epochs at once, or one and then two more: the same weights, averages and both optimizers' moments."""
    quick = {
        "publish": None, "embeddings": None, "summaries": None, "experiments_dir": str(tmp_path),
        "data.init_args.repeats": 1,
    }  # fmt: skip
    whole = unitrain.fit(SETTINGS, quick | {"trainer.max_epochs": 3}, quiet=True)
    part = unitrain.fit(SETTINGS, quick | {"trainer.max_epochs": 1}, quiet=True)
    resumed = unitrain.resume(part.run_dir, {"trainer.max_epochs": 3}, quiet=True)
    assert whole.last_checkpoint is not None
    assert resumed.last_checkpoint is not None
    expected = torch.load(whole.last_checkpoint, weights_only=True)
    found = torch.load(resumed.last_checkpoint, weights_only=True)
    assert found["global_step"] == expected["global_step"] == 2 * 3 * 9
    assert len(expected["optimizer_states"]) == 2
    for name in ("state_dict", "current_model_state", "optimizer_states"):
        assert flat(found[name]).keys() == flat(expected[name]).keys()
        for key, value in flat(expected[name]).items():
            assert torch.equal(torch.as_tensor(flat(found[name])[key]), torch.as_tensor(value)), (name, key)
    average, raw = flat(expected["state_dict"]), flat(expected["current_model_state"])
    assert any(not torch.equal(average[key], raw[key]) for key in average), "there is an average"


def flat(value, name: str = "") -> dict[str, object]:
    """The leaves of nested mappings and lists, by path; texts and None are left out."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in pairs for k, v in flat(item, f"{name}/{key}").items()}
    return {} if value is None or isinstance(value, str) else {name: value}


def test_diverging_training_is_stopped_under_manual_optimisation_too(tmp_path: Path) -> None:
    """A loss that is no number ends it, though Lightning does not see the backward pass."""
    quick = {"publish": None, "embeddings": None, "summaries": None, "experiments_dir": str(tmp_path)}
    with pytest.raises(unitrain.errors.UnitrainError, match="NaN or infinite"):
        unitrain.fit(SETTINGS, quick | {"model.init_args.adversarial_weight": float("inf")}, quiet=True)


def test_scores_are_best_for_the_same_and_worse_for_others() -> None:
    """Real against real: no distance, not told apart; against noise and against a mixture's digits: both."""
    train, labels = load_digit_arrays("train")
    real, held_out = train[:400], load_digit_arrays("held_out").images
    generator = np.random.default_rng(0)
    noise = generator.uniform(0, 16, real.shape)
    mixture = mixture_samples(train, 400, components=5)
    features = DigitFeatures(train, labels)
    distances = [frechet_distance(features(held_out), features(x)) for x in (real, mixture, noise)]
    accuracies = [two_sample_accuracy(held_out, x) for x in (real, mixture, noise)]
    assert distances == sorted(distances)
    assert accuracies == sorted(accuracies)
    assert accuracies[0] == pytest.approx(0.5, abs=0.08)
    assert accuracies[-1] > 0.98
    assert frechet_distance(features(real), features(real)) == pytest.approx(0, abs=1e-3)
    assert explained_variance(real, real, real.mean(0)) == 1


def test_client_asks_for_both_ways_at_once_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each held-out digit once, one new digit a request; a perfect answer explains everything."""
    image = TensorSpec("image", "FP32", (1, 8, 8))
    signature = Signature((image, TensorSpec("code", "FP32", (3,))), (), batched=True)
    info = ModelInfo("generative", (2,), None, signature, 1024, "127.0.0.1:8001")
    io = DigitsIO(
        info, n_samples=410, output=str(tmp_path / "a" / "s.npz"), plot=str(tmp_path / "b" / "p.png")
    )
    for index, sample in enumerate(io.inputs()):
        assert sample["code"].shape == (3,)
        rebuilt = {"encoded": sample["code"], "reconstruction": sample["image"], "generated": sample["image"]}
        io.decode(index, rebuilt, version=2)
    assert index == 410 + 20 - 1
    io.finalize()
    assert io.explained_variance == 1
    assert "version 2" in capsys.readouterr().out
    with np.load(tmp_path / "a" / "s.npz") as kept:
        assert {name: len(kept[name]) for name in kept} == {
            "original": 400, "reconstruction": 400, "encoded": 400, "label": 400, "generated": 410,
        }  # fmt: skip
    assert (tmp_path / "b" / "p.png").read_bytes().startswith(b"\x89PNG")
    DigitsIO(info, plot=str(tmp_path / "none.png")).finalize()
    assert "0 of 2020 answers" in capsys.readouterr().out
    assert not (tmp_path / "none.png").exists()


@pytest.mark.slow
def test_served_digits_are_rebuilt_better_than_by_pca(terminal: Terminal) -> None:
    """README's commands, a short training: more of held-out digits is explained than by PCA of the same size (0.78)."""
    terminal.read(README, "--trainer.max_epochs 14 --model.init_args.lr 0.002")
    folder = terminal.project / "experiments" / "generative"
    assert list(folder.glob("*/embeddings/*")), "digits and codes are in the Projector"
    said = terminal.said("predict generative")
    assert float(said.split("reconstructions ")[1].split()[0]) > 0.78
    with np.load(folder / "served.npz") as served:
        assert two_sample_accuracy(load_digit_arrays("held_out").images, served["generated"]) < 0.99
    assert (folder / "served.png").read_bytes().startswith(b"\x89PNG")
    golden = "python -m unitrain predict generative --input golden --model-repository triton_repo"
    terminal.type(golden)
    assert "errors     0" in terminal.said(golden)
