"""Weights that are reparametrized, tied, masked, quantized, adapted or shared."""

import copy

import torch
from torch import nn
from torch.ao import quantization
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from corpus.case import Small, case, floats


@case(must="either")
class OldWeightNorm(Small):
    def __init__(self):
        super().__init__()
        self.net[0] = torch.nn.utils.weight_norm(self.net[0])


@case(must="either")
class WeightNormParametrization(Small):
    def __init__(self):
        super().__init__()
        self.net[0] = parametrizations.weight_norm(self.net[0])


@case(must="either")
class OldSpectralNorm(Small):
    def __init__(self):
        super().__init__()
        self.net[0] = torch.nn.utils.spectral_norm(self.net[0])


@case(must="either")
class SpectralNormParametrization(Small):
    def __init__(self):
        super().__init__()
        self.net[0] = parametrizations.spectral_norm(self.net[0])


@case(must="either")
class OrthogonalParametrization(Small):
    def __init__(self):
        super().__init__()
        self.square = parametrizations.orthogonal(nn.Linear(8, 8, bias=False), orthogonal_map="householder")

    def forward(self, x):
        return self.net(self.square(x))


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).transpose(-1, -2)


@case()
class OwnParametrization(Small):
    def __init__(self):
        super().__init__()
        self.square = nn.Linear(8, 8)
        parametrize.register_parametrization(self.square, "weight", Symmetric())

    def forward(self, x):
        return self.net(self.square(x))


@case(must="either")
class PrunedFromTheStart(Small):
    """Masks by torch's pruning: `weight_orig` and `weight_mask`."""

    def __init__(self):
        super().__init__()
        prune.l1_unstructured(self.net[0], "weight", amount=0.5)


@case(must="either")
class PrunedInTraining(Small):
    def on_train_epoch_end(self):
        if self.current_epoch == 0:
            prune.random_unstructured(self.net[0], "weight", amount=0.5)


@case()
class MaskedByHand(Small):
    """Weights set to zero after each step by a mask in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", (torch.rand(16, 8) > 0.5).float())

    def forward(self, x):
        return self.net[2](torch.relu(F.linear(x, self.net[0].weight * self.mask, self.net[0].bias)))

    def on_train_epoch_end(self):
        self.mask.copy_((self.net[0].weight.abs() > self.net[0].weight.abs().median()).float())


@case(must="either")
class QuantizationAware(Small):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        quantization.prepare_qat(self.train(), inplace=True)

    def forward(self, x):
        return self.dequant(self.net(self.quant(x)))


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@case(must="either")
class StraightThroughRounding(Small):
    """An own autograd function in forward."""

    def forward(self, x):
        return self.net(Round.apply(x * 4) / 4)


@case()
class BinaryWeights(Small):
    def forward(self, x):
        w = self.net[0].weight
        w = w + (w.sign() * w.abs().mean() - w).detach()
        return self.net[2](torch.relu(F.linear(x, w, self.net[0].bias)))


class LoRALinear(nn.Module):
    def __init__(self, base, rank=2, alpha=4.0):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scaling, self.merged = alpha / rank, False

    def forward(self, x):
        y = self.base(x)
        return y if self.merged else y + (x @ self.lora_a.T @ self.lora_b.T) * self.scaling


@case()
class LowRankAdapter(Small):
    def __init__(self):
        super().__init__()
        self.net[0], self.net[2] = LoRALinear(self.net[0]), LoRALinear(self.net[2])

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 1e-2)


class MergingLoRA(LoRALinear):
    """Merges into the base in evaluation and unmerges in training, as loralib does."""

    def train(self, mode=True):
        super().train(mode)
        delta = (self.lora_b @ self.lora_a) * self.scaling
        if mode and self.merged:
            self.base.weight.data -= delta.data
            self.merged = False
        elif not mode and not self.merged:
            self.base.weight.data += delta.data
            self.merged = True
        return self


@case()
class MergesInEvaluation(Small):
    def __init__(self):
        super().__init__()
        self.net[0] = MergingLoRA(self.net[0])


@case()
class TiedAutoencoder(Small):
    """The decoder is the encoder's transpose."""

    def __init__(self):
        super().__init__()
        self.encoder, self.bias = nn.Linear(8, 4), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.T, self.bias)

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[0])


@case()
class SharedLayer(Small):
    """One layer under three names, applied three times."""

    def __init__(self):
        super().__init__()
        layer = nn.Linear(8, 8)
        self.blocks = nn.ModuleList([layer, layer])
        self.alias = layer

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.net(self.alias(x))


@case()
class TiedInForward(Small):
    """`self.b.weight = self.a.weight` in every forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        self.b.weight = self.a.weight
        return self.net(self.b(torch.relu(self.a(x))))


@case(must="either")
class WeightsAsFunctions(Small):
    """torch.func.functional_call with weights changed on the fly."""

    def forward(self, x):
        weights = {name: p * 1.1 for name, p in self.net.named_parameters()}
        return torch.func.functional_call(self.net, weights, (x,))


@case(must="either")
class EnsembleByVmap(Small):
    """Stacked weights of three networks, run by vmap."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 1, 8)), nn.Parameter(torch.zeros(3, 1))

    def forward(self, x):
        return torch.vmap(F.linear, in_dims=(None, 0, 0))(x, self.weight, self.bias).permute(1, 0, 2)

    def step(self, batch):
        return (self(batch[0]) - batch[1][:, None]).square().mean()


@case()
class WeightStandardization(Small):
    def forward(self, x):
        w = self.net[0].weight
        w = (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5)
        return self.net[2](torch.relu(F.linear(x, w, self.net[0].bias)))


@case()
class ParameterDicts(Small):
    def __init__(self):
        super().__init__()
        self.scales = nn.ParameterDict(
            {"before": nn.Parameter(torch.ones(8)), "after": nn.Parameter(torch.ones(1))}
        )
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(1))])

    def forward(self, x):
        return self.net(x * self.scales["before"] + self.shifts[0]) * self.scales["after"] + self.shifts[1]


@case(must="either")
class TransformersWithHooks(Small):
    """Forward hooks that scale a layer's output, as feature extractors register them."""

    def __init__(self):
        super().__init__()
        self.features = {}
        self.net[0].register_forward_hook(
            lambda module, inputs, output: self.features.update(hidden=output) or output * 1.5
        )

    def forward(self, x):
        y = self.net(x)
        return {"y": y, "hidden": self.features["hidden"]}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case()
class DistilledStudent(Small):
    """A registered teacher, whose weights follow by an own moving average (BYOL, mean teacher)."""

    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x):
        return {"student": self.net(x), "teacher": self.teacher(x)}

    def step(self, batch):
        out = self(batch[0])
        return F.mse_loss(out["student"], batch[1]) + F.mse_loss(out["student"], out["teacher"])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                t.lerp_(s, 0.1)


@case(settings={"ema": {"decay": 0.9, "average_buffers": True}})
class AveragedBatchNorm(Small):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))


@case(settings={"ema": None}, image=floats(1, 8, 8))
class RawBatchNorm(Small):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Flatten(), nn.Linear(144, 1)
        )

    def forward(self, image):
        return self.net(image)
