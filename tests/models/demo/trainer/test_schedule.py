"""A run can be resumed, and its optimiser does what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from divprune_edge.models.demo.trainer.muon import orthogonal  # noqa: E402
from divprune_edge.models.demo.trainer.schedule import TrainingRun, TrainingStage  # noqa: E402


def train(folder: Path, steps: int) -> tuple[TrainingRun, list[float]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
    run = TrainingRun(TrainingStage("tiny", steps=steps, batch=4, rate=0.02, warmup=5), model, folder, seed=0)
    losses = []
    for _, generator in run.steps():
        x = torch.randn(32, 8, generator=generator)
        loss = (model(x) - x).square().mean()
        run.descend(loss, {})
        losses.append(float(loss.detach()))
    return run, losses


def test_training_learns_and_a_finished_stage_is_not_repeated(tmp_path: Path) -> None:
    run, losses = train(tmp_path, 60)
    assert len(losses) == 60
    assert losses[-1] < 0.5 * losses[0]
    again, repeated = train(tmp_path, 60)
    assert repeated == []
    assert again.step == 60
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_a_longer_stage_goes_on_where_it_stopped(tmp_path: Path) -> None:
    train(tmp_path, 20)
    _, losses = train(tmp_path, 26)
    assert len(losses) == 6


def test_stages_draw_different_pictures(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    first = TrainingRun(TrainingStage("a", 1, 50, 0.01), model, tmp_path, seed=0).rows(1000)
    second = TrainingRun(TrainingStage("b", 1, 50, 0.01), model, tmp_path, seed=0).rows(1000)
    assert first.tolist() != second.tolist()
    assert first.tolist() == sorted(first.tolist())


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 24, 8), (2, 8, 24)])
def test_orthogonal_updates_have_even_singular_values(shape: tuple[int, ...]) -> None:
    update = orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    values = torch.linalg.svdvals(update)
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.5
