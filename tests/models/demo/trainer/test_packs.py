"""A pack of many questions gives each of them what it would have had alone."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")

from divprune_edge.models.demo.held_out import held_out  # noqa: E402
from divprune_edge.models.demo.trainer.language_phase import answer_logits, draw_budgets, right_answers  # noqa: E402
from divprune_edge.models.demo.trainer.network import DemoLlava  # noqa: E402
from divprune_edge.models.demo.trainer.packs import HEAD, ask_for_training, build_batch, positions  # noqa: E402
from divprune_edge.models.demo.trainer.tokenizer import EOS  # noqa: E402


def test_packed_questions_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = DemoLlava()
    questions = held_out(1).questions[0]
    features = torch.randn(1, 40, 128)
    budgets = torch.tensor([40])
    packed = build_batch([[[q] for q in questions]])
    with torch.no_grad():
        together = answer_logits(model, features, packed, budgets)
        for index, question in enumerate(questions):
            alone = answer_logits(model, features, build_batch([[[question]]]), budgets)
            assert torch.allclose(together[packed.asked == index], alone, atol=1e-4)


def test_every_answer_ends() -> None:
    data = held_out(4)
    batch = build_batch([[[q] for q in questions] for questions in data.questions])
    for index in range(len(batch.questions)):
        labels = batch.labels[batch.asked == index].tolist()
        assert labels[-1] == EOS
        assert EOS not in labels[:-1]


def test_right_means_every_token() -> None:
    batch = build_batch([[[q] for q in held_out(1).questions[0]]])
    logits = torch.nn.functional.one_hot(batch.labels, 300).float()
    assert bool(right_answers(logits, batch).all())
    logits[0] = 0
    assert right_answers(logits, batch).tolist() == [False] + [True] * (len(batch.questions) - 1)


def test_later_turns_continue_their_conversation() -> None:
    scenes = held_out(6).scenes
    packs = ask_for_training(scenes, np.random.default_rng(1))
    assert any(len(conversation) > 1 for pack in packs for conversation in pack)
    batch = build_batch(packs)
    for row in range(len(packs)):
        for number, conversation in enumerate(packs[row]):
            offsets = batch.offsets[row][batch.group[row] == number]
            assert offsets.tolist() == list(range(len(offsets)))
            assert int((batch.ids[row][batch.group[row] == number] == EOS).sum()) == len(conversation)


def test_positions_are_those_of_the_budget() -> None:
    batch = build_batch([[[q] for q in held_out(1).questions[0]]])
    for budget in (576, 58):
        found = positions(576, torch.tensor([budget]), batch)[0]
        assert found[: len(HEAD)].tolist() == [0, 1, 2]
        assert int(found[len(HEAD)]) == 3
        assert int(found[len(HEAD) + 575]) == 3 + (575 * budget) // 576
        assert int(found[len(HEAD) + 576]) == 3 + budget
    budgets = draw_budgets(4000, 576, torch.Generator().manual_seed(0))
    assert int(budgets.min()) >= 8
    assert int(budgets.max()) == 576
    assert 0.45 < float((budgets == 576).float().mean()) < 0.56
