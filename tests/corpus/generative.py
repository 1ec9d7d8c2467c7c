"""Generators, autoencoders, diffusion, and what is random in them."""

import torch
from torch import nn
from torch.nn import functional as F

from corpus.case import Small, alone, case, floats, ints


class TwoOptimizers(Small):
    """A GAN as Lightning's tutorial has it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
        self.example_input_array = torch.zeros(2, 4)

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, y_hat, y):
        return F.binary_cross_entropy_with_logits(y_hat, y)

    def training_step(self, batch):
        imgs = batch[0]
        optimizer_g, optimizer_d = self.optimizers()
        z = torch.randn(imgs.shape[0], 4).type_as(imgs)
        self.toggle_optimizer(optimizer_g)
        self.generated_imgs = self(z)
        ones = torch.ones(imgs.size(0), 1).type_as(imgs)
        g_loss = self.adversarial_loss(self.discriminator(self(z)), ones)
        self.manual_backward(g_loss)
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)
        self.toggle_optimizer(optimizer_d)
        fake = self.discriminator(self(z).detach())
        d_loss = self.adversarial_loss(self.discriminator(imgs), ones) + self.adversarial_loss(fake, 0 * ones)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.discriminator(batch[0]).mean())

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), 1e-3),
            torch.optim.Adam(self.discriminator.parameters(), 1e-3),
        ], []


@case(must="equal", layout=lambda inputs, y: (inputs["z"].repeat(2), y), z=floats(4))
class AdversarialTutorial(TwoOptimizers):
    def on_validation_epoch_end(self):
        self.sampled = self(torch.randn(2, 4))


@case(must="equal", layout=lambda inputs, y: (inputs["z"].repeat(2), y), z=floats(4), label=ints(3))
class ConditionalGenerator(TwoOptimizers):
    """Two example inputs, neither of which is in the batch."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.example_input_array = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))

    def forward(self, z, label=None):
        return self.generator(z if label is None else z + self.embed(label))


class Autoencoder(Small):
    def __init__(self):
        super().__init__()
        self.encoder, self.to_mu, self.to_var, self.decoder = (
            nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4), nn.Linear(4, 8),
        )  # fmt: skip

    def encode(self, x):
        h = torch.relu(self.encoder(x))
        return self.to_mu(h), self.to_var(h)

    def step(self, batch):
        out = self(batch)
        kl = -0.5 * (1 + out["log_var"] - out["mu"].square() - out["log_var"].exp()).mean()
        return F.mse_loss(out["x_hat"], batch) + 0.1 * kl


@case(layout=alone)
class VariationalAutoencoder(Autoencoder):
    """Samples in training, decodes the mean in evaluation."""

    def forward(self, x):
        mu, log_var = self.encode(x)
        z = mu + torch.randn_like(mu) * (0.5 * log_var).exp() if self.training else mu
        return {"x_hat": self.decoder(z), "mu": mu, "log_var": log_var}


@case(must="refused", layout=alone)
class AlwaysSamples(Autoencoder):
    """As Lightning's and many tutorials have it: forward samples in evaluation, too."""

    def forward(self, x):
        mu, log_var = self.encode(x)
        q = torch.distributions.Normal(mu, (log_var / 2).exp())
        return {"x_hat": self.decoder(q.rsample()), "mu": mu, "log_var": log_var}


@case(x=floats(8), t=ints(10))
class NoisePredictor(Small):
    """A diffusion model: the network of a noisy sample and its time step is served."""

    def __init__(self):
        super().__init__(8 + 8, 8)
        betas = torch.linspace(1e-3, 0.2, 10)
        self.register_buffer("alphas_bar", torch.cumprod(1 - betas, 0))

    def embed(self, t):
        freqs = torch.exp(torch.arange(4, device=t.device) * -1.0)
        angles = t[:, None].float() * freqs[None]
        return torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, x, t):
        return self.net(torch.cat([x, self.embed(t)], 1))

    def step(self, batch):
        x, t, _ = batch
        noise, a = torch.randn_like(x), self.alphas_bar[t][:, None]
        return F.mse_loss(self(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)


@case(must="refused", x=floats(8))
class SamplesInForward(NoisePredictor):
    """The whole sampling loop as forward, with noise drawn inside."""

    def forward(self, x, t=None):
        if t is not None:
            return self.net(torch.cat([x, self.embed(t)], 1))
        for i in reversed(range(3)):
            steps = torch.full((x.size(0),), i, device=x.device)
            x = x - 0.1 * self.net(torch.cat([x, self.embed(steps)], 1)) + 0.1 * torch.randn_like(x)
        return x

    def step(self, batch):
        x = batch[0]
        t = torch.randint(0, 10, (len(x),))
        return F.mse_loss(self(x, t), x)


@case(must="refused")
class MonteCarloDropout(Small):
    """Dropout kept on in evaluation."""

    def forward(self, x):
        return self.net(F.dropout(x, 0.5, training=True))


@case(must="refused")
class MonteCarloDropoutByMode(Small):
    """Dropout layers set back to training mode inside of forward."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        self.dropout.train()
        return torch.stack([self.net(self.dropout(x)) for _ in range(3)]).mean(0)


@case(must="refused")
class NoiseByNumpy(Small):
    def forward(self, x):
        import numpy as np

        return self.net(x) + float(np.random.default_rng().normal())


@case(must="refused")
class NoiseByPython(Small):
    def forward(self, x):
        import random

        return self.net(x) * random.uniform(0.5, 1.5)


@case(must="either")
class SeededNoise(Small):
    """The same noise each time: a generator is seeded in forward."""

    def forward(self, x):
        g = torch.Generator().manual_seed(3)
        return self.net(x + torch.randn(8, generator=g))


@case(must="either")
class GumbelInTraining(Small):
    def __init__(self):
        super().__init__(out=4)
        self.tau = 1.0
        self.codes = nn.Embedding(4, 8)

    def forward(self, x):
        logits = self.net(x)
        hard = (
            F.gumbel_softmax(logits, self.tau, hard=True)
            if self.training
            else F.one_hot(logits.argmax(1), 4).float()
        )
        return hard @ self.codes.weight

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[0])

    def on_train_epoch_end(self):
        self.tau *= 0.5


class Coupling(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x):
        a, b = x.chunk(2, 1)
        s, t = self.net(a).chunk(2, 1)
        s = torch.tanh(s)
        return torch.cat([b * s.exp() + t, a], 1), s.sum(1)


@case(must="either", layout=alone)
class NormalizingFlow(Small):
    """A prior of torch.distributions, which checks its arguments by their values."""

    def __init__(self):
        super().__init__()
        self.flows = nn.ModuleList([Coupling(), Coupling()])
        self.prior = torch.distributions.Normal(0.0, 1.0)

    def forward(self, x):
        log_det = x.new_zeros(x.size(0))
        for flow in self.flows:
            x, ld = flow(x)
            log_det = log_det + ld
        return {"z": x, "log_prob": self.prior.log_prob(x).sum(1) + log_det}

    def step(self, batch):
        return -self(batch)["log_prob"].mean()


@case(must="either", layout=alone)
class ScoreByGradient(Small):
    """An energy model that serves its gradient: autograd inside of forward."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            return -torch.autograd.grad(self.net(x).sum(), x, create_graph=self.training)[0]

    def step(self, batch):
        x = batch
        return F.mse_loss(self(x), -x)

    def validation_step(self, batch, batch_idx):
        with torch.inference_mode(False), torch.enable_grad():
            self.log("val_loss", self.step(batch.clone()).detach())
