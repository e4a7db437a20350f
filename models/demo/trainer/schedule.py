"""Steps, learning rate and resuming: what the training phases have in common."""

from __future__ import annotations

import math
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .muon import Muon
from .workers import average_gradients, count, rank

ADAM_SHARE = 0.08
"""Adam's learning rate (embeddings, norms, biases, outputs) relative to Muon's (hidden matrices)."""


@dataclass(frozen=True)
class TrainingStage:
    """One stretch of training with a constant recipe; the learning rate is a cosine over it."""

    name: str
    steps: int
    batch: int
    rate: float
    patches: int | None = None
    """Visual tokens per step, None for all of them."""
    final_rate: float = 0.05
    """Learning rate at the end, relative to `rate`."""
    warmup: int = 100
    tower_share: float = 1.0
    """Learning rate of the vision tower relative to the rest, 0 to leave it alone."""


@dataclass
class TrainingRun:
    """A resumable run of one stage: model, optimiser and step live in `folder / <stage>.pt`."""

    stage: TrainingStage
    model: nn.Module
    folder: Path
    seed: int
    every: int = 20
    step: int = 0
    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            inner = parameter.ndim == 2 and not any(word in name for word in ("embed", "heads", "lm_head"))
            is_tower = any(word in name for word in ("tower", "visual")) and "merger" not in name
            groups[inner, is_tower].append(parameter)

        def shared(inner: bool) -> list[dict[str, object]]:
            shares = {False: 1.0, True: self.stage.tower_share}
            return [{"params": groups[inner, t], "share": s} for t, s in shares.items() if groups[inner, t]]

        adam_rate = self.stage.rate * ADAM_SHARE
        self.optimizers = (
            Muon(shared(True), lr=self.stage.rate),
            torch.optim.AdamW(shared(False), lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )
        self.base = (self.stage.rate, adam_rate)
        self.path = self.folder / f"{self.stage.name}.pt"
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    def steps(self) -> Iterator[tuple[int, torch.Generator]]:
        """Step numbers still to do, each with its own random stream (so a resumed run is the same run)."""
        started, first = time.monotonic(), self.step
        while self.step < self.stage.steps:
            for optimizer, base in zip(self.optimizers, self.base, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = base * self.factor() * group["share"]
            yield self.step, torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
            self.step += 1
            if self.step % self.every == 0 or self.step == self.stage.steps:
                self._report((self.step - first) / (time.monotonic() - started))
            if self.step % 200 == 0 or self.step == self.stage.steps:
                self.save()

    def _report(self, pace: float) -> None:
        """One line of progress; `pace` in steps per second."""
        if rank() > 0:
            self.sums.clear()
            return
        scores = " ".join(f"{name} {sum(v) / len(v):.3f}" for name, v in self.sums.items())
        left = (self.stage.steps - self.step) / pace / 60
        speed = f"{pace * self.stage.batch:.0f}/s {left:.0f} min left"
        print(f"{self.stage.name} {self.step}/{self.stage.steps} {speed} | {scores}", flush=True)
        self.sums.clear()

    def rows(self, pictures: int) -> np.ndarray:
        """This process's share of the step's random pictures, int64, ascending."""
        stream = (self.seed, zlib.crc32(self.stage.name.encode()), self.step)
        rows = np.random.default_rng(stream).integers(0, pictures, self.stage.batch)
        return np.sort(rows[rank() :: count()])

    def factor(self) -> float:
        """The schedule: warm-up, then a cosine down to `final_rate`."""
        warm = min(1.0, (self.step + 1) / self.stage.warmup)
        cosine = 0.5 + 0.5 * math.cos(math.pi * self.step / self.stage.steps)
        return warm * (self.stage.final_rate + (1 - self.stage.final_rate) * cosine)

    def descend(self, loss: torch.Tensor, scores: dict[str, float]) -> None:
        """Backward pass, clipped update, book-keeping."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.model.parameters())
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.sums["loss"].append(float(loss.detach()))
        for name, value in scores.items():
            self.sums[name].append(value)

    def save(self) -> None:
        """Write the state beside its place and move it there: an interruption leaves the old one."""
        if rank() > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }
        scratch = self.path.with_suffix(".tmp")
        torch.save(state, scratch)
        scratch.replace(self.path)
