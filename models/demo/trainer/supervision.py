"""What each patch is taught to know, so that a small language model can read it off.

A patch of an object knows the object's shape, colour, centre, size and how many there are of its
kind; a patch of a digit knows the digit and its place in the number; other patches know that they
are background. The heads are linear and are thrown away after training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..render import SIGN, UNCLEAR
from ..scenes import COLORS, MAX_OBJECTS, MAX_RADIUS, MIN_RADIUS, SHAPES

KIND_SIGN, KIND_DIGIT = len(SHAPES) + 1, len(SHAPES) + 2
HEADS = {
    "kind": len(SHAPES) + 3,
    "color": len(COLORS),
    "digit": 10,
    "slot": 3,
    "last": 2,
    "column": 3,
    "row": 3,
    "same_color": MAX_OBJECTS,
    "same_shape": MAX_OBJECTS,
    "total": MAX_OBJECTS,
    "place": 3,
    "size": 4,
}
WEIGHTS = {
    "kind": 2.0,
    "color": 1.0,
    "digit": 1.5,
    "slot": 0.5,
    "last": 0.5,
    "column": 0.3,
    "row": 0.3,
    "place": 6.0,
}


class Heads(nn.Module):
    """One linear layer whose outputs are all the heads."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, sum(HEADS.values()))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """[batch, n, hidden] to logits [batch, n, classes] by name."""
        parts = self.linear(features).split(list(HEADS.values()), -1)
        return dict(zip(HEADS, parts, strict=True))


def targets(owners: Tensor, things: Tensor, digits: Tensor) -> dict[str, Tensor]:
    """Per-patch targets; class indices int64 [batch, n] with -100 where nothing is asked.

    `owners` int64 [batch, n], `things` float32 [batch, 5, 5], `digits` int64 [batch, 3]; `place`
    float32 [batch, n, 3] is the owner's x, y and relative log size, NaN where nothing is asked.
    """
    is_object = (owners >= 1) & (owners <= MAX_OBJECTS)
    is_digit = (owners > SIGN) & (owners < UNCLEAR)
    row = (owners - 1).clamp(0, MAX_OBJECTS - 1)
    own = things.gather(1, row[..., None].expand(-1, -1, 5))
    shape, color = own[..., 0].long(), own[..., 1].long()

    kind = torch.zeros_like(owners)
    kind = torch.where(is_object, shape + 1, kind)
    kind = torch.where(owners == SIGN, KIND_SIGN, kind)
    kind = torch.where(is_digit, KIND_DIGIT, kind)
    kind = kind.masked_fill(owners == UNCLEAR, -100)

    slot = (owners - SIGN - 1).clamp(0, 2)
    length = (digits >= 0).sum(1, keepdim=True)

    def of_object(value: Tensor) -> Tensor:
        return value.masked_fill(~is_object, -100)

    def of_digit(value: Tensor) -> Tensor:
        return value.masked_fill(~is_digit, -100)

    size = torch.log(own[..., 4].clamp(min=1e-3) / MIN_RADIUS) / torch.log(
        torch.tensor(MAX_RADIUS / MIN_RADIUS)
    )
    place = torch.stack([own[..., 2], own[..., 3], size], -1).masked_fill(~is_object[..., None], float("nan"))
    present = things[..., 0] >= 0
    return {
        "kind": kind,
        "color": of_object(color),
        "digit": of_digit(digits.gather(1, slot)),
        "slot": of_digit(slot),
        "last": of_digit((slot == length - 1).long()),
        "column": of_object((own[..., 2] * 3).long().clamp(0, 2)),
        "row": of_object((own[..., 3] * 3).long().clamp(0, 2)),
        # Absent rows hold -1, which no object's colour or shape equals.
        "same_color": of_object((things[:, None, :, 1] == own[..., None, 1]).sum(-1) - 1),
        "same_shape": of_object((things[:, None, :, 0] == own[..., None, 0]).sum(-1) - 1),
        "total": of_object((present.sum(1, keepdim=True) - 1).expand_as(owners)),
        "place": place,
        "size": of_object((size * 4).long().clamp(0, 3)),
    }


def loss_of(outputs: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the heads' losses, and each head's accuracy (mean absolute error for `place`)."""
    total = torch.zeros(())
    scores: dict[str, float] = {}
    for name, output in outputs.items():
        if name == "place":
            asked = ~wanted[name].isnan().any(-1)
            error = output[asked] - wanted[name][asked]
            loss = functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1)
            scores[name] = float(error.detach().abs().mean())
        else:
            asked = wanted[name] >= 0
            if not bool(asked.any()):
                continue
            picked, label = output[asked], wanted[name][asked]
            loss = functional.cross_entropy(picked, label)
            scores[name] = float((picked.detach().argmax(-1) == label).float().mean())
        total = total + WEIGHTS.get(name, 1.0) * loss
    return total, scores
