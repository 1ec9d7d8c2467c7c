"""Images generated from codes, and codes found for images."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torchmetrics import MetricCollection, R2Score

from unitrain.figures import reconstructions
from unitrain.models.mlp import perceptron
from unitrain.module import Tensors, UnitrainModule, batch_inputs


class AdversarialAutoencoder(UnitrainModule):
    """An autoencoder whose codes can't be distinguished from standard normal ones (Makhzani et al. 2015).

    Encoder and decoder reconstruct images; a critic learns to distinguish the encoder's codes from drawn ones, and
    the encoder learns to deceive it. Hence the decoder makes a new image of any code that is drawn from a
    standard normal distribution. See https://arxiv.org/abs/1511.05644.

    Serves `image`, float32 [batch, 1, height, width], ink from 0 to `ink`, and `code`, float32
    [batch, code_size] →

    - `encoded`, float32 [batch, code_size]: the code of `image`;
    - `reconstruction`, float32 [batch, 1, height, width]: the image of `encoded`;
    - `generated`, float32 [batch, 1, height, width]: the image of `code`.

    One graph has both ways, so that a code is always decoded by the decoder that it was made for; who needs
    one of them alone sends zeros for the other. A batch is a mapping of `image`, `code` (drawn from the
    standard normal distribution) and, for looking at the codes, `label`, int64 [batch].

    Args:
        height: height of an image, in pixels.
        width: width of an image, in pixels.
        ink: the greatest value of a pixel.
        code_size: values of a code.
        hidden: units of the encoder's hidden layers, first to last; the decoder's are the reverse.
        critic_hidden: units of the critic's.
        adversarial_weight: weight of the adversarial term in the autoencoder's loss; the reconstruction has 1.
        code_noise: standard deviation of what is added to a code in training before it is decoded.
        gradient_penalty: weight of the critic's squared slope at drawn codes (R1, Mescheder et al. 2018).
        lr: Adam's learning rate for both.
    """

    def __init__(
        self,
        *,
        height: int = 8,
        width: int = 8,
        ink: float = 16.0,
        code_size: int = 12,
        hidden: Sequence[int] = (256, 256),
        critic_hidden: Sequence[int] = (256, 256),
        adversarial_weight: float = 0.02,
        code_noise: float = 0.1,
        gradient_penalty: float = 1.0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.ink = ink
        self.adversarial_weight = adversarial_weight
        self.code_noise = code_noise
        self.gradient_penalty = gradient_penalty
        pixels = height * width
        self.encoder = nn.Sequential(nn.Flatten(), perceptron((pixels, *hidden, code_size), "gelu"))
        self.decoder = nn.Sequential(
            perceptron((code_size, *reversed(hidden), pixels), "gelu"),
            nn.Sigmoid(),
            nn.Unflatten(1, (1, height, width)),
        )
        self.critic = perceptron((code_size, *critic_hidden, 1), "gelu")

    def preprocess(self, inputs: Tensors) -> Tensors:
        return inputs | {"image": inputs["image"] / self.ink}

    def forward(self, image: Tensor, code: Tensor) -> Tensors:
        encoded = self.encoder(image)
        return {
            "encoded": encoded,
            "reconstruction": self.decoder(encoded),
            "generated": self.decoder(code),
        }

    def postprocess(self, outputs: Tensors) -> Tensors:
        images = ("reconstruction", "generated")
        return outputs | {name: outputs[name] * self.ink for name in images}

    def loss(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        """The autoencoder's loss; the critic's is `critic_loss`."""
        deceived = nn.functional.softplus(-self.critic(outputs["encoded"])).mean()
        return {
            "reconstruction": nn.functional.mse_loss(outputs["reconstruction"], inputs["image"]),
            "adversarial": self.adversarial_weight * deceived,
        }

    def critic_loss(self, drawn: Tensor, encoded: Tensor) -> Tensor:
        """Return the critic's loss on drawn and encoded codes plus its gradient penalty; a scalar.

        Args:
            drawn: codes [batch, code_size] of the standard normal distribution.
            encoded: codes of images [batch, code_size].
        """
        drawn = drawn.detach().requires_grad_()
        score = self.critic(drawn)
        (slope,) = torch.autograd.grad(score.sum(), drawn, create_graph=True)
        told = nn.functional.softplus(-score).mean() + nn.functional.softplus(self.critic(encoded)).mean()
        return told + self.gradient_penalty / 2 * slope.square().sum(1).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        autoencoder, critic = cast("list[LightningOptimizer]", self.optimizers())
        inputs = self.preprocess(batch_inputs(self, batch))
        encoded = self.encoder(inputs["image"])
        noisy = encoded + self.code_noise * torch.randn_like(encoded)
        terms = self.loss(inputs, {"encoded": encoded, "reconstruction": self.decoder(noisy)}, batch)
        total = torch.stack(list(terms.values())).sum()
        autoencoder.zero_grad()
        self.manual_backward(total)
        autoencoder.step()

        told = self.critic_loss(inputs["code"], encoded.detach())
        critic.zero_grad()
        self.manual_backward(told)
        critic.step()

        values = {"loss": total, **terms, "critic": told}
        self.log_dict({f"train_{name}": value.detach() for name, value in values.items()})
        return (total + told).detach()  # where it is no number, the training ends

    def metrics(self) -> MetricCollection:
        # Of all pixels together, about their one mean.
        return MetricCollection({"r2": R2Score()})

    def metric_args(self, inputs: Tensors, outputs: Tensors, batch: Any) -> tuple[Tensor, Tensor]:
        return outputs["reconstruction"].flatten(), inputs["image"].flatten()

    def labels(self, batch: Any) -> Mapping[str, Any]:
        return {"digit": batch["label"]}

    def embeddings(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Tensors:
        return {"image": inputs["image"], "encoded": outputs["encoded"]}

    def summaries(self, inputs: Tensors, outputs: Tensors, batch: Any) -> Mapping[str, Any]:
        names = batch["label"].tolist()
        return {
            "reconstruction": reconstructions(inputs["image"], outputs["reconstruction"], names, most=8),
            "generated": outputs["generated"][:16].clamp(0, 1),
        }

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        lr = self.hparams["lr"]
        autoencoder = [*self.encoder.parameters(), *self.decoder.parameters()]
        # A momentum of 0.9 makes the two chase each other.
        return [
            torch.optim.Adam(part, lr, betas=(0.5, 0.999)) for part in (autoencoder, self.critic.parameters())
        ]
