"""From one vector per sample to state logits and a point. The same heads serve stages 2 and 3."""

import torch
from torch import Tensor, nn

from geo_embed.config import GpsBox, Model
from geo_embed.fusion import fuse_average

# A small last layer starts the classifier near the uniform distribution.
_LAST_LAYER_GAIN = 0.01


class ClassificationHead(nn.Module):
    """D → hidden → GELU → dropout → C logits."""

    def __init__(self, dim: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)
        nn.init.xavier_uniform_(self.out.weight, gain=_LAST_LAYER_GAIN)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) to logits (B, C)."""
        logits: Tensor = self.out(self.dropout(nn.functional.gelu(self.hidden(vectors))))
        return logits


class GpsHead(nn.Module):
    """D → hidden → GELU → dropout → second → GELU → 2, through tanh onto a box of latitudes and longitudes."""

    middle: Tensor
    reach: Tensor

    def __init__(self, dim: int, hidden: int, second: int, dropout: float, box: GpsBox) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(hidden, second)
        self.out = nn.Linear(second, 2)
        low = torch.tensor([box.lat_min, box.lon_min])
        high = torch.tensor([box.lat_max, box.lon_max])
        self.register_buffer("middle", (low + high) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) to latitude and longitude (B, 2) in degrees, inside the box."""
        hidden = self.dropout(nn.functional.gelu(self.hidden(vectors)))
        unit = torch.tanh(self.out(nn.functional.gelu(self.second(hidden))))
        point: Tensor = self.middle + self.reach * unit
        return point


class Heads(nn.Module):
    """Both heads over one fused vector."""

    def __init__(self, dim: int, classes: int, model: Model) -> None:
        super().__init__()
        self.state = ClassificationHead(dim, model.head_hidden, classes, model.dropout)
        self.gps = GpsHead(dim, model.head_hidden, model.gps_hidden, model.dropout, model.gps_box)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Fused vectors (B, D) to logits (B, C) and points (B, 2) in degrees."""
        return self.state(vectors), self.gps(vectors)

    def predict(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, D) embeddings and (B, V) bool to P(state) (B, C) and latitude, longitude (B, 2) in degrees."""
        logits, points = self(fuse_average(views.float(), present))
        return torch.softmax(logits, dim=1), points
