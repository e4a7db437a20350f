"""A plan's prompts, made by the code that makes them for a user."""

from __future__ import annotations

from divprune_edge.errors import UserError
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.tokenizer import TOKENIZER_FILE
from divprune_edge.models.tiles import picks_of
from divprune_edge.processing.image_input import ONE_SPAN
from divprune_edge.processing.prompt import PromptEncoder, Turn

_QUESTION = "What is in the picture?"


def prompt_encoder(plan: ExportPlan, room: int) -> PromptEncoder:
    """Return what turns conversations into ids, as the runtime will, of at most ``room`` tokens with the answer."""
    facts, decoder = plan.prompt, plan.spec.decoder
    return PromptEncoder(
        facts.entry,
        facts.template,
        facts.tokenizer,
        rows=plan.embedding_rows,
        room=room,
        context=decoder.context,
        axes=decoder.rope.axes,
    )


def check_prompts(plan: ExportPlan) -> None:
    """Check that the bundle of ``plan`` can be asked: a question about an image becomes ids, within its room.

    Raises:
        UserError: it does not, or the tokenizer gives a token another id than the checkpoint states.
    """
    facts = plan.prompt
    try:
        encoder = prompt_encoder(plan, plan.positions)
        model = encoder.tokenizer.model
        for token, stated in facts.token_ids.items():
            if model.token_to_id(token) != stated:
                raise UserError(
                    f"the checkpoint states id {stated} for the token '{token}', but {TOKENIZER_FILE} gives it "
                    f"{model.token_to_id(token)}; load and save its tokenizer with transformers, or download the "
                    "checkpoint again.",
                    code="tokenizer-files-disagree",
                )
        kept = [plan.keep * picks_of(plan.spec, plan.per)]
        encoder.encode([Turn("user", _QUESTION, images=1)], kept)
        if plan.preprocessing.clips is not None:
            encoder.encode([Turn("user", _QUESTION, clips=(ONE_SPAN,))], kept)
    except UserError as error:
        raise UserError(
            f"A bundle of '{plan.checkpoint.name}' could never be asked (chat template from "
            f"{facts.entry.template_source}): {error}",
            code="bundle-cannot-be-asked",
        ) from error
