"""Architectures in the style of timm, Hugging Face, tutorials and papers, each as small as can be."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from corpus.case import ByName, Classifier, Small, alone, bools, case, classes, floats, ints, mapping


class ConvNormAct(nn.Sequential):
    def __init__(self, cin, cout, groups=1, stride=1):
        super().__init__(
            nn.Conv2d(cin, cout, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(cout), nn.SiLU()
        )


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x):
        return x * self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class DropPath(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or not self.rate:
            return x
        keep = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


@case(target=classes(3), image=floats(3, 16, 16))
class EfficientNetLike(Classifier):
    """Depthwise convolutions, squeeze and excitation, drop path, feature switches of timm."""

    def __init__(self):
        super().__init__(8)
        self.stem = ConvNormAct(3, 8, stride=2)
        self.block = nn.Sequential(
            ConvNormAct(8, 8, groups=8), SqueezeExcite(8), nn.Conv2d(8, 8, 1), DropPath(0.2)
        )
        self.global_pool = nn.AdaptiveAvgPool2d(1)

    def forward_features(self, image):
        x = self.stem(image)
        return x + self.block(x)

    def forward_head(self, x, pre_logits: bool = False):
        x = self.global_pool(x).flatten(1)
        return x if pre_logits else self.net(x)

    def forward(self, image):
        return self.forward_head(self.forward_features(image))


@case(target=classes(3), pixel_values=floats(3, 8, 8))
class VisionTransformer(Classifier):
    def __init__(self):
        super().__init__(16)
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 5, 16) * 0.02)
        self.norm, self.qkv, self.proj = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, pixel_values):
        x = self.patch(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.position
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return self.net(x[:, 0])


@case(layout=alone, idx=ints(20, 6))
class CausalLanguageModel(Small):
    """GPT as minGPT has it: tied weights, a causal mask buffer, the loss only with targets."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(20, 16), nn.Embedding(6, 16)
        self.c_attn, self.ln = nn.Linear(16, 48), nn.LayerNorm(16)
        self.lm_head = nn.Linear(16, 20, bias=False)
        self.lm_head.weight = self.wte.weight
        self.register_buffer("bias", torch.tril(torch.ones(6, 6)).view(1, 1, 6, 6))

    def forward(self, idx, targets=None):
        b, t = idx.size()
        x = self.wte(idx) + self.wpe(torch.arange(t, device=idx.device))
        q, k, v = (part.view(b, t, 2, 8).transpose(1, 2) for part in self.c_attn(self.ln(x)).split(16, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(8)
        scores = scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf")).softmax(-1)
        logits = self.lm_head(x + (scores @ v).transpose(1, 2).reshape(b, t, 16))
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def step(self, batch):
        return self(batch, batch.roll(-1, 1))[1]


@case(target=classes(3), input_ids=ints(20, 6), attention_mask=ints(2, 6), layout=mapping)
class BertLike(Classifier):
    """Extended attention mask, pooler, `output_hidden_states` as a switch, tuples or dicts."""

    def __init__(self):
        super().__init__(16)
        self.embed, self.norm = nn.Embedding(20, 16, padding_idx=0), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.pooler = nn.Linear(16, 16)

    def get_extended_attention_mask(self, attention_mask, dtype):
        return (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min

    def forward(self, input_ids, attention_mask=None, output_hidden_states=False, return_dict=True):
        hidden = self.norm(self.embed(input_ids))
        mask = self.get_extended_attention_mask(attention_mask, hidden.dtype)
        q = hidden.unsqueeze(1)
        hidden = hidden + F.scaled_dot_product_attention(q, q, q, attn_mask=mask / 1e30).squeeze(1)
        pooled = torch.tanh(self.pooler(hidden[:, 0]))
        out = {"logits": self.net(pooled), "pooler_output": pooled}
        if output_hidden_states:
            out["hidden_states"] = (hidden,)
        return out if return_dict else tuple(out.values())

    def step(self, batch):
        return F.cross_entropy(self(batch["input_ids"], batch["attention_mask"])["logits"], batch["y"])


@case(series=floats(6, 4))
class BidirectionalLSTM(Small):
    def __init__(self):
        super().__init__(16)
        self.lstm = nn.LSTM(4, 8, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)

    def forward(self, series):
        out, (h, c) = self.lstm(series)
        return self.net(torch.cat([h[-2], h[-1]], 1))


@case(series=floats(6, 4))
class InitialStateByHand(Small):
    """`init_hidden(batch_size)` as older tutorials have it."""

    def __init__(self):
        super().__init__(8)
        self.gru = nn.GRU(4, 8, batch_first=True)

    def init_hidden(self, batch_size):
        return torch.zeros(1, batch_size, 8, device=self.device)

    def forward(self, series):
        _, h = self.gru(series, self.init_hidden(series.size(0)))
        return self.net(h[0])


@case(must="either", series=floats(6, 4))
class HiddenStateIsKept(Small):
    """A stateful RNN: the hidden state of the last batch is where the next begins."""

    def __init__(self):
        super().__init__(8)
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.hidden = None

    def forward(self, series):
        hidden = self.hidden if self.hidden is not None and self.hidden.shape[1] == len(series) else None
        out, hidden = self.gru(series, hidden)
        self.hidden = hidden.detach()
        return self.net(out[:, -1])


@case(series=floats(4, 3))
class RecurrentCellLoop(Small):
    def __init__(self):
        super().__init__(8)
        self.cell = nn.LSTMCell(3, 8)

    def forward(self, series):
        h = c = series.new_zeros(series.size(0), 8)
        for t in range(series.size(1)):
            h, c = self.cell(series[:, t], (h, c))
        return self.net(h)


@case(src=floats(4, 3))
class SeqToSeqForecast(Small):
    """An autoregressive decoder, with teacher forcing in training alone."""

    def __init__(self):
        super().__init__(8, 1)
        self.encoder, self.decoder = nn.GRU(3, 8, batch_first=True), nn.GRUCell(1, 8)

    def forward(self, src, target=None, teacher_forcing=0.5):
        h = self.encoder(src)[1][0]
        y, outputs = src[:, -1, :1], []
        for _ in range(3):
            h = self.decoder(y, h)
            y = self.net(h)
            outputs.append(y)
            if self.training and target is not None and torch.rand(()) < teacher_forcing:
                y = target
        return torch.cat(outputs, 1)

    def step(self, batch):
        return F.mse_loss(self(batch[0], batch[1]), batch[1].expand(-1, 3))


@case(must="either", src=ints(12, 4), layout=alone)
class GreedyDecoding(Small):
    """Argmax fed back for a fixed number of tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(12, 8), nn.GRUCell(8, 8), nn.Linear(8, 12)

    def forward(self, src):
        h = self.embed(src).mean(1)
        token = torch.zeros(src.size(0), dtype=torch.long, device=src.device)
        logits = []
        for _ in range(3):
            h = self.cell(self.embed(token), h)
            logits.append(self.out(h))
            token = logits[-1].argmax(-1)
        return {"logits": torch.stack(logits, 1), "last": token}

    def step(self, batch):
        return F.cross_entropy(self(batch)["logits"][:, 0], batch[:, 0])


@case(must="either", src=ints(12, 4), layout=alone)
class DecodesUntilTheEnd(Small):
    """A while loop that ends when every row has its end token."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(12, 8), nn.Linear(8, 12)

    def forward(self, src):
        h, n = self.embed(src).mean(1), 0
        logits = self.out(h)
        while (logits.argmax(-1) != 0).any() and n < 5:
            h = torch.tanh(h + self.embed(logits.argmax(-1)))
            logits, n = self.out(h), n + 1
        return logits

    def step(self, batch):
        return F.cross_entropy(self(batch), batch[:, 0])


@case(layout=mapping, nodes=floats(5, 4), adjacency=bools(5, 5))
class DenseGraphNetwork(ByName):
    def __init__(self):
        super().__init__(8)
        self.message = nn.Linear(4, 8)

    def forward(self, nodes, adjacency):
        a = adjacency.float() + torch.eye(5, device=nodes.device)
        a = a / a.sum(-1, keepdim=True)
        return self.net(torch.relu(a @ self.message(nodes)).mean(1))


@case(must="either")
class SparseAdjacencyBuffer(Small):
    def __init__(self):
        super().__init__()
        self.register_buffer("adj", (torch.eye(8) + torch.eye(8).roll(1, 0)).to_sparse())

    def forward(self, x):
        return self.net(torch.sparse.mm(self.adj, x.T).T)


@case(must="either")
class EdgeIndexScatter(Small):
    """Message passing by index_add over an edge list, as graph libraries have it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, 0]]))

    def forward(self, x):
        out = torch.zeros_like(x).index_add(1, self.edges[1], x[:, self.edges[0]])
        return self.net(x + out)


@case(must="either", layout=mapping, target=classes(2), x_num=floats(5), x_cat=ints(4, 3))
class FTTransformer(Classifier):
    def __init__(self):
        super().__init__(16, 2)
        self.weight, self.bias = nn.Parameter(torch.randn(5, 16)), nn.Parameter(torch.zeros(5, 16))
        self.category = nn.Embedding(12, 16)
        self.register_buffer("offsets", torch.tensor([0, 4, 8]))
        self.cls = nn.Parameter(torch.zeros(16))
        self.layer = nn.TransformerEncoderLayer(
            16, 4, 32, batch_first=True, norm_first=True, activation="gelu"
        )

    def forward(self, x_num, x_cat):
        tokens = torch.cat(
            [self.cls.expand(len(x_num), 1, -1), x_num[..., None] * self.weight + self.bias,
             self.category(x_cat + self.offsets)], 1,
        )  # fmt: skip
        return self.net(self.layer(tokens)[:, 0])

    def step(self, batch):
        return F.cross_entropy(self(batch["x_num"], batch["x_cat"]), batch["y"])


@case()
class MixtureOfExperts(Small):
    """The top two of four experts, chosen by each row."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x):
        weight, index = self.gate(x).softmax(-1).topk(2, dim=-1)
        every = torch.stack([expert(x) for expert in self.experts], 1)
        chosen = every.gather(1, index[..., None].expand(-1, -1, 8))
        return self.net((weight[..., None] * chosen).sum(1))


@case(must="either")
class SparseDispatchExperts(Small):
    """Experts on the rows that are theirs, by boolean indexing."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

    def forward(self, x):
        index, out = self.gate(x).argmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out[index == i] = expert(x[index == i])
        return self.net(out)


@case(must="either", signal=floats(16))
class FourierLayer(Small):
    """A spectral convolution with complex weights."""

    def __init__(self):
        super().__init__(16)
        self.weight = nn.Parameter(torch.randn(9, dtype=torch.cfloat))

    def forward(self, signal):
        return self.net(torch.fft.irfft(torch.fft.rfft(signal) * self.weight, n=16))


@case(must="either", signal=floats(64))
class SpectrogramInside(Small):
    def __init__(self):
        super().__init__(9)
        self.register_buffer("window", torch.hann_window(16))

    def forward(self, signal):
        stft = torch.stft(signal, 16, 8, window=self.window, center=False, return_complex=True)
        return self.net(stft.abs().square().clamp(min=1e-6).log().mean(-1))


@case()
class NeuralODE(Small):
    """Fixed Runge-Kutta steps."""

    def __init__(self):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x):
        for _ in range(3):
            k1 = self.field(x)
            k2 = self.field(x + 0.05 * k1)
            x = x + 0.1 * k2
        return self.net(x)


@case(must="either")
class FixedPointIteration(Small):
    """A deep equilibrium model: iterates until the change is small."""

    def __init__(self):
        super().__init__()
        self.f = nn.Linear(8, 8)

    def forward(self, x):
        z = torch.zeros_like(x)
        for _ in range(20):
            new = torch.tanh(0.3 * self.f(z) + x)
            if (new - z).abs().max() < 1e-3:
                break
            z = new
        return self.net(z)


@case(must="either")
class GaussianProcessHead(Small):
    """Inducing points, a kernel matrix, a Cholesky factor solved at every call."""

    def __init__(self):
        super().__init__(out=4)
        self.points, self.values = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5, 1))

    def kernel(self, a, b):
        return (-0.5 * (a[:, None] - b[None]).square().sum(-1)).exp()

    def forward(self, x):
        factor = torch.linalg.cholesky(self.kernel(self.points, self.points) + 0.1 * torch.eye(5))
        return self.kernel(self.net(x), self.points) @ torch.cholesky_solve(self.values, factor)


@case(must="either")
class CdistPrototypes(Small):
    def __init__(self):
        super().__init__(out=4)
        self.prototypes = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return torch.cdist(self.net(x), self.prototypes).amin(1, keepdim=True)


@case(must="either")
class MatrixExponential(Small):
    def __init__(self):
        super().__init__()
        self.skew = nn.Parameter(torch.randn(8, 8) * 0.1)

    def forward(self, x):
        return self.net(x @ torch.matrix_exp(self.skew - self.skew.T))


@case()
class HyperNetwork(Small):
    """Weights of the second layer are made from the input."""

    def __init__(self):
        super().__init__(8, 8)

    def forward(self, x):
        return torch.bmm(x[:, None], self.net(x)[..., None])[:, 0]


@case(points=floats(7, 3))
class DeepSets(Small):
    def __init__(self):
        super().__init__()
        self.phi = nn.Linear(3, 8)

    def forward(self, points):
        return self.net(torch.relu(self.phi(points)).amax(1))


@case(coordinates=floats(3))
class FourierFeatures(Small):
    def __init__(self):
        super().__init__(24)
        self.register_buffer("freqs", 2.0 ** torch.arange(4), persistent=False)

    def forward(self, coordinates):
        angles = coordinates[..., None] * self.freqs
        return self.net(torch.cat([angles.sin(), angles.cos()], -1).flatten(1))


@case(image=floats(1, 16, 16))
class UNetWithSkip(Small):
    def __init__(self):
        super().__init__()
        self.down, self.mid = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(5, 1, 1)

    def forward(self, image):
        x = torch.relu(self.down(image))
        x = self.up(torch.relu(self.mid(x)))
        diff = image.size(2) - x.size(2)
        return self.out(torch.cat([image, F.pad(x, [diff // 2, diff - diff // 2] * 2)], 1))

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[0])


@case(image=floats(3, 16, 16))
class AnchorDetector(Small):
    """Boxes decoded from anchors; scores; all candidates are given out."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 2 * 5, 1)
        ys, xs = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        self.register_buffer("centers", torch.stack([xs, ys], -1).float().view(1, 16, 1, 2) * 4 + 2)
        self.register_buffer("anchors", torch.tensor([[4.0, 4.0], [8.0, 8.0]]).view(1, 1, 2, 2))

    def forward(self, image):
        raw = self.head(torch.relu(self.backbone(image))).permute(0, 2, 3, 1).reshape(image.size(0), 16, 2, 5)
        centers = self.centers + raw[..., :2].tanh() * 2
        sizes = self.anchors * raw[..., 2:4].clamp(-2, 2).exp()
        boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], -1).flatten(1, 2)
        return {"boxes": boxes, "scores": raw[..., 4].sigmoid().flatten(1)}

    def step(self, batch):
        out = self(batch[0])
        return out["scores"].mean() + (out["boxes"] / 16).square().mean()


@case(must="either", image=floats(3, 16, 16))
class DetectorWithThreshold(Small):
    """Only the boxes above a threshold, a list with an entry an image: data-dependent shapes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 5, 4, 4)

    def forward(self, image):
        raw = self.head(image).flatten(2).transpose(1, 2)
        if self.training:
            return raw
        return [{"boxes": r[r[:, 4] > 0][:, :4], "scores": r[r[:, 4] > 0][:, 4]} for r in raw]

    def step(self, batch):
        return self.head(batch[0]).square().mean()


@case()
class MixtureDensity(Small):
    def __init__(self):
        super().__init__(out=9)

    def forward(self, x):
        pi, mu, log_sigma = self.net(x).chunk(3, -1)
        return {"pi": pi.softmax(-1), "mu": mu, "sigma": F.softplus(log_sigma) + 1e-3}

    def step(self, batch):
        out = self(batch[0])
        mixture = torch.distributions.Categorical(out["pi"])
        normal = torch.distributions.Normal(out["mu"], out["sigma"])
        return -torch.distributions.MixtureSameFamily(mixture, normal).log_prob(batch[1][:, 0]).mean()


@case(must="either")
class DistributionOutput(Small):
    """Forward returns a torch distribution, no tensor."""

    def forward(self, x):
        y = self.net(x)
        return torch.distributions.Normal(y, torch.ones_like(y))

    def step(self, batch):
        return -self(batch[0]).log_prob(batch[1]).mean()


@case(left=floats(8), right=floats(8))
class Siamese(Small):
    def __init__(self):
        super().__init__(out=4)

    def forward(self, left, right):
        return F.cosine_similarity(self.net(left), self.net(right), dim=1)

    def step(self, batch):
        return F.mse_loss(self(*batch[:2]), batch[2][:, 0])


@case(image=floats(3, 12, 12))
class ResizeInside(Small):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, image):
        image = F.interpolate(image, size=(8, 8), mode="bilinear", align_corners=False)
        return self.net(F.adaptive_avg_pool2d(self.conv(image), 1).flatten(1))


@case(image=floats(2, 9, 9))
class SpatialTransformer(Small):
    """grid_sample by a predicted affine transformation."""

    def __init__(self):
        super().__init__(2 * 81)
        self.theta = nn.Linear(2 * 81, 6)
        self.theta.weight.data.mul_(0.1)
        self.theta.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])

    def forward(self, image):
        theta = self.theta(image.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        return self.net(F.grid_sample(image, grid, align_corners=False).flatten(1))


@case(x=floats(8))
class EinsumAttention(Small):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(2, 4, 4)), nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x):
        x = x.unflatten(1, (2, 4))
        q, k = torch.einsum("bnd,hde->bhne", x, self.q), torch.einsum("bnd,hde->bhne", x, self.k)
        a = torch.einsum("bhne,bhme->bhnm", q, k).softmax(-1)
        return self.net(torch.einsum("bhnm,bmd->bnd", a, x).flatten(1))
