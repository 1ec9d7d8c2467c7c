"""Rows whose answers depend on their neighbours, or on how many there are."""

import torch
from torch import nn
from torch.nn import functional as F

from corpus.case import Small, case, floats


@case(must="either")
class BranchOnBatchSize(Small):
    def forward(self, x):
        return self.net(x) * (2.0 if x.size(0) > 20 else 1.0)


@case(must="either")
class BranchOnLargeBatch(Small):
    """Above 40 rows alone."""

    def forward(self, x):
        return self.net(x) if x.shape[0] <= 40 else self.net(x) + 1.0


@case(must="either")
class BranchOnOneRow(Small):
    """Forum code that skips a normalisation for one row."""

    def forward(self, x):
        y = self.net(x)
        return y - 1.0 if len(x) == 1 else y


@case(must="either")
class SubtractsTheBatchMean(Small):
    def forward(self, x):
        return self.net(x - x.mean(0, keepdim=True))


@case(must="either")
class SoftmaxOverTheBatch(Small):
    """`softmax(dim=0)` in the place of `dim=1`."""

    def forward(self, x):
        return self.net(x).softmax(0)


@case(must="either")
class BatchNormAlwaysTrains(Small):
    """`track_running_stats=False`: the batch's own statistics in evaluation, too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x):
        return self.net(self.norm(x))


@case(must="either")
class BatchNormByFunction(Small):
    """`F.batch_norm(..., training=True)`, which needs more than one row."""

    def forward(self, x):
        return self.net(F.batch_norm(x, None, None, training=True))


@case(must="either")
class ContrastiveSimilarity(Small):
    """Similarities of all pairs in the batch: [row, row]."""

    def forward(self, x):
        z = F.normalize(self.net[0](x), dim=1)
        return z @ z.T

    def step(self, batch):
        s = self(batch[0])
        return F.cross_entropy(s / 0.1, torch.arange(len(s)))


@case(must="either")
class AttendsToNeighbours(Small):
    """Attention without a batch axis: rows are the sequence."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.net(self.attention(x, x, x, need_weights=False)[0])


@case(must="either")
class RanksInBatch(Small):
    def forward(self, x):
        y = self.net(x)
        return {"y": y, "rank": y[:, 0].argsort()}

    def step(self, batch):
        return F.mse_loss(self(batch[0])["y"], batch[1])


@case(must="either")
class ScalesByTheLargest(Small):
    """Divides by the batch's largest magnitude, above a threshold that few rows reach."""

    def forward(self, x):
        return self.net(x / x.abs().max().clamp(min=1.0))


@case(must="either")
class DifferencesOfRows(Small):
    """Each row minus the one before it."""

    def forward(self, x):
        return self.net(x - x.roll(1, 0))


@case(must="either")
class MinibatchDiscrimination(Small):
    """A feature of the distance to the other rows, as in GAN discriminators."""

    def __init__(self):
        super().__init__(9)

    def forward(self, x):
        apart = (x[:, None] - x[None]).abs().sum(2)
        return self.net(torch.cat([x, (-apart).exp().sum(1, keepdim=True) - 1], 1))


@case(must="either")
class GhostBatchNorm(Small):
    """Normalises over chunks of sixteen rows."""

    def forward(self, x):
        chunks = x.chunk(max(1, x.size(0) // 16), 0)
        return self.net(torch.cat([c - c.mean(0, keepdim=True) for c in chunks], 0))


@case(must="either", x=floats(8))
class FixedBatchSize(Small):
    """A reshape with the batch size written in."""

    def forward(self, x):
        return self.net(x.view(8, -1, 8).reshape(-1, 8))


@case()
class LayerNormOnly(Small):
    """Normalisation over features: rows are independent."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.net(self.norm(x))


@case(series=floats(6, 4))
class NormalisesOverTime(Small):
    """Reversible instance normalisation: by row, over time."""

    def __init__(self):
        super().__init__(4)

    def forward(self, series):
        mean, std = series.mean(1, keepdim=True), series.std(1, keepdim=True) + 1e-5
        return self.net((series - mean) / std) * std + mean

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[0])


@case(series=floats(6, 4))
class ReshapesTheBatchAway(Small):
    """Time is folded into the batch and unfolded again."""

    def __init__(self):
        super().__init__(4)

    def forward(self, series):
        b, t, c = series.shape
        return self.net(series.reshape(b * t, c)).reshape(b, t).mean(1)

    def step(self, batch):
        return F.mse_loss(self(batch[0]), batch[1][:, 0])


@case(must="either")
class ChunkedForward(Small):
    """Rows in chunks of ten, to spare memory."""

    def forward(self, x):
        return torch.cat([self.net(part) for part in x.split(10)])
