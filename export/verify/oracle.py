"""The reference: transformers' own model in float32, with weights that transformers itself loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.verify.adapter import PeftAdapter, without_adapter
from divprune_edge.models.families.family import DECODER, HEAD, Reference
from divprune_edge.models.files import CheckpointFiles
from divprune_edge.processing.image_input import ImageInput

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ExpectedAnswer:
    """A greedy continuation: ``logits`` float32 [steps + 1, V] (prefill first), ``tokens`` int64 [steps]."""

    logits: Array
    tokens: Array


@dataclass(frozen=True)
class Layer:
    """A decoder layer at work, float32: what enters it, passes its middle and leaves it [n, D], its projections [n, …].

    Queries and keys are behind their heads' norms, and before the rotary embedding; ``normed`` is what the layer's two
    branches read.
    """

    before: Array
    middle: Array
    after: Array
    normed: tuple[Array, Array]
    queries: Array
    keys: Array


class Oracle:
    """A family's model in float32 on the CPU, whole or with its first decoder layers only.

    An ``adapter`` is merged by peft.
    """

    def __init__(
        self,
        reference: Reference[Any],
        folder: Path,
        layers: int | None = None,
        adapter: PeftAdapter | None = None,
    ) -> None:
        import torch
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        if layers is not None:
            _truncate(config.text_config, layers)
        with _quiet(), without_adapter(folder) as bare:
            model = getattr(transformers, reference.model).from_pretrained(
                bare, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            if adapter is not None:
                model = adapter.into(model)
        self._torch = torch
        self._reference = reference
        self._model = model.eval()
        self._modules = {
            **reference.modules(model),
            DECODER: model.get_decoder(),
            HEAD: model.get_output_embeddings(),
        }
        self._processor = _image_processor(reference.processor, folder)

    def replace(self, part: str, name: str, weight: Array) -> None:
        """Put float32 ``weight`` in the place of a part's parameter, such as ``norm.weight`` of the decoder."""
        path, _, leaf = name.rpartition(".")
        module = self._modules[part].get_submodule(path)
        assert tuple(getattr(module, leaf).shape) == weight.shape, f"{part}.{name}"
        # A parameter of its own: a tied head must not take the embedding with it.
        setattr(module, leaf, self._torch.nn.Parameter(self._torch.from_numpy(weight), requires_grad=False))

    def visual_tokens(self, images: Sequence[ImageInput]) -> list[Array]:
        """Return float32 [m, D] of each image; the constants are the checkpoint file's."""
        found: list[Array] = []
        with self._torch.inference_mode():
            for image in images:
                (rows,) = self._reference.visual_tokens(self._model, self._processed, [image])
                found.append(rows.numpy())
        return found

    @contextmanager
    def changing(self, part: str, module: str, change: Callable[[Array], Array]) -> Iterator[None]:
        """Meanwhile let ``change`` pass what enters a module of a part, float32 [tiles, n, hidden]."""

        def enter(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._torch.from_numpy(change(given[0].numpy())), *given[1:]

        hook = self._modules[part].get_submodule(module).register_forward_pre_hook(enter)
        try:
            yield
        finally:
            hook.remove()

    def record(
        self, part: str, pixels: Array, modules: Sequence[str]
    ) -> tuple[list[Array], dict[str, Array]]:
        """Run a part on uint8 [tiles, H, W, 3]; return its hidden states, and what the modules named in it put out."""
        module, taken = self._modules[part], {}
        hooks = [
            module.get_submodule(name).register_forward_hook(
                lambda m, i, out, name=name: taken.update({name: out.numpy()})
            )
            for name in modules
        ]
        try:
            with self._torch.inference_mode():
                out = module(self._processed(pixels)["pixel_values"], output_hidden_states=True)
        finally:
            for hook in hooks:
                hook.remove()
        return [state.numpy() for state in out.hidden_states], taken

    def apply(self, part: str, features: Array) -> Array:
        """Run a part on float32 ``features``."""
        with self._torch.inference_mode():
            result: Array = self._modules[part](self._torch.from_numpy(features)).numpy()
        return result

    def _processed(self, pixels: Array) -> Mapping[str, Any]:
        images: Mapping[str, Any] = self._processor(
            images=list(pixels), return_tensors="pt", input_data_format="channels_last"
        )
        return images

    def embed(self, ids: Array) -> Array:
        """Return float32 [length, D] of vocabulary ids."""
        with self._torch.inference_mode():
            rows: Array = self._model.get_input_embeddings()(self._torch.from_numpy(ids)).numpy()
        return rows

    def answer(
        self, embeddings: Array, steps: int, positions: Array | None = None, stacked: int = 0
    ) -> ExpectedAnswer:
        """Prefill float32 [length, D], then decode ``steps`` tokens greedily.

        ``positions`` is int64 [3, length + steps] where an id has three. Behind the D values of a row lie ``stacked``
        times as many for the first layers.
        """
        if positions is not None:
            return self._placed_answer(embeddings, steps, positions, stacked)
        torch, logits, tokens = self._torch, [], []
        with torch.inference_mode():
            out = self._model(
                inputs_embeds=torch.from_numpy(embeddings)[None], use_cache=True, logits_to_keep=1
            )
            logits.append(out.logits[0, -1].numpy())
            for _ in range(steps):
                tokens.append(int(logits[-1].argmax()))
                out = self._model(
                    input_ids=torch.tensor([tokens[-1:]]),
                    past_key_values=out.past_key_values,
                    use_cache=True,
                    logits_to_keep=1,
                )
                logits.append(out.logits[0, -1].numpy())
        return ExpectedAnswer(np.stack(logits), np.asarray(tokens, dtype=np.int64))

    def _placed_answer(self, embeddings: Array, steps: int, positions: Array, stacked: int) -> ExpectedAnswer:
        """Run the decoder itself: the whole model would compute positions of its own."""
        torch, decoder, head = self._torch, self._modules[DECODER], self._modules[HEAD]
        rows, *beside = np.split(embeddings, 1 + stacked, axis=1)
        visual = np.any([part.any(axis=1) for part in beside], axis=0) if beside else None
        more = {}
        if visual is not None:
            more = {
                "visual_pos_masks": torch.from_numpy(visual)[None],
                "deepstack_visual_embeds": [torch.from_numpy(part[visual]) for part in beside],
            }
        places = torch.from_numpy(positions)[:, None]
        logits, tokens = [], []
        with torch.inference_mode():
            out = decoder(
                inputs_embeds=torch.from_numpy(np.ascontiguousarray(rows))[None],
                position_ids=places[..., : len(rows)],
                use_cache=True,
                **more,
            )
            logits.append(head(out.last_hidden_state[0, -1]).numpy())
            for step in range(steps):
                tokens.append(int(logits[-1].argmax()))
                at = len(rows) + step
                out = decoder(
                    inputs_embeds=torch.from_numpy(self.embed(np.array(tokens[-1:])))[None],
                    position_ids=places[..., at : at + 1],
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )
                logits.append(head(out.last_hidden_state[0, -1]).numpy())
        return ExpectedAnswer(np.stack(logits), np.asarray(tokens, dtype=np.int64))

    def layers(self, embeddings: Array, positions: Array | None = None, stacked: int = 0) -> list[Layer]:
        """Prefill float32 [length, D], as :meth:`answer` does, and return every decoder layer at work."""
        decoder = self._modules[DECODER]
        seen: list[dict[str, Any]] = [{} for _ in decoder.layers]
        hooks = []
        for layer, into in zip(decoder.layers, seen, strict=True):
            attention = layer.self_attn
            for name, module in (
                ("queries", getattr(attention, "q_norm", attention.q_proj)),
                ("keys", getattr(attention, "k_norm", attention.k_proj)),
                ("attended", layer.input_layernorm),
                ("fed", layer.post_attention_layernorm),
                ("after", layer),
            ):

                def take(m: Any, i: Any, out: Any, into: Any = into, name: str = name) -> None:
                    value = out[0] if isinstance(out, tuple) else out
                    into[name] = value[0].flatten(1).numpy()
                    if i:
                        into[f"before {name}"] = i[0][0].flatten(1).numpy()

                hooks.append(module.register_forward_hook(take))
        try:
            self.answer(embeddings, 0, positions, stacked)
        finally:
            for hook in hooks:
                hook.remove()
        return [
            Layer(
                one["before attended"],
                one["before fed"],
                one["after"],
                (one["attended"], one["fed"]),
                one["queries"],
                one["keys"],
            )
            for one in seen
        ]

    def rope_tables(self, positions: int) -> tuple[Array, Array]:
        """Return (cosine, sine), each float32 [positions, head_dim / 2]."""
        torch, decoder = self._torch, self._model.get_decoder()
        with torch.inference_mode():
            cosine, sine = decoder.rotary_emb(torch.zeros(1), torch.arange(positions)[None])
        half = cosine.shape[-1] // 2  # transformers repeats the table for the two halves of a head
        return cosine[0, :, :half].numpy(), sine[0, :, :half].numpy()


def _truncate(text_config: Any, layers: int) -> None:
    text_config.num_hidden_layers = layers
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = text_config.layer_types[:layers]


def _image_processor(processor: Callable[[str | None], str], folder: Path) -> Any:
    """Return transformers' own processor, less resize and crop, with the checkpoint's own settings."""
    import transformers

    files = CheckpointFiles(folder)
    config = files.json("preprocessor_config.json")
    if config is None:
        whole = files.required_json("processor_config.json", "says how images are resized")
        config = whole["image_processor"]
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    chosen = {name: config[name] for name in names if config.get(name) is not None}
    name = processor(config.get("image_processor_type") or config.get("feature_extractor_type"))
    return getattr(transformers, name)(do_resize=False, do_center_crop=False, **chosen)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: weights of layers that were cut away are no news here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
