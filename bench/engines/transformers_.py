"""transformers with scaled dot-product attention, pruned by max-min diversity in PyTorch or not at all."""

from __future__ import annotations

from typing import Any

from bench.engines.engine import Clock, Engine, SpeedJob, Times, decode_ms, pixels, text_ids


def open_engine(job: SpeedJob) -> Engine:
    """Load the checkpoint."""
    return Transformers(job)


class Transformers:
    """``LlavaForConditionalGeneration`` in the dtype of the job's options."""

    def __init__(self, job: SpeedJob) -> None:
        import torch
        from transformers import LlavaForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        torch.set_num_threads(job.threads)
        self._torch, self._job = torch, job
        self._dtype = getattr(torch, job.options["dtype"])
        self._model: Any = LlavaForConditionalGeneration.from_pretrained(
            job.checkpoint, dtype=self._dtype, attn_implementation="sdpa"
        ).eval()
        image = torch.from_numpy(pixels(job)).permute(0, 3, 1, 2).to(torch.float32)
        self._pixels = (image / 127.5 - 1).to(self._dtype)
        self._text = torch.from_numpy(text_ids(job))[None]

    def versions(self) -> dict[str, str]:
        """See :class:`bench.engines.engine.Engine`."""
        import transformers

        return {"torch": self._torch.__version__, "transformers": transformers.__version__}

    def measure(self, visual: int) -> Times:
        """Encode, select, prefill, decode."""
        torch, job = self._torch, self._job
        with torch.inference_mode():
            clock = Clock()
            features = self._model.get_image_features(pixel_values=self._pixels, return_dict=True)
            tokens = torch.stack(list(features.pooler_output))
            vision = clock.lap()
            if visual < job.all_visual:
                tokens = tokens[:, _max_min(torch, tokens[0].float(), visual)]
            select = clock.lap()
            text = self._model.get_input_embeddings()(self._text)
            embeddings = torch.cat([text[:, :4], tokens.to(text.dtype), text[:, 4:]], dim=1)
            out = self._model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
            prefill = clock.lap()
            cache = out.past_key_values
            decode = decode_ms(
                job,
                lambda token: self._model(
                    input_ids=torch.tensor([[token]]),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ),
            )
        return {"vision": vision, "select": select, "prefill": prefill, "decode": decode}


def _max_min(torch: Any, tokens: Any, keep: int) -> Any:
    """Return the ascending indices that max-min diversity keeps of tokens [N, D]."""
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    distances = 1 - unit @ unit.T
    first = distances.clone().fill_diagonal_(4.0).min(dim=1).values.argmax()
    picks = [first]
    reach = distances[first].clone()
    reach[first] = -4.0
    for _ in range(keep - 1):
        pick = reach.argmax()
        picks.append(pick)
        reach = torch.minimum(reach, distances[pick])
        reach[pick] = -4.0
    return torch.stack(picks).sort().values
