"""The model that answers, inside of Triton's Python backend: our pipeline over the graphs that Triton runs.

A request has one question; its answer comes in pieces, as of a decoupled model, the last with what was kept.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from divprune_edge.errors import DivpruneError
from divprune_edge.processing.images import MAX_PIXELS, image_of_bytes
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.backends import Backend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.triton.graphs import TritonGraphs, runner

FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
OPTIONS = {"max_tokens": int, "temperature": float, "top_p": float, "seed": int}
"""Of decoding, as inputs that may be left out."""
_log = logging.getLogger("divprune_edge")


class _Pipeline(Pipeline):
    """Over Triton's models."""

    def __init__(self, bundle: Bundle, graphs: TritonGraphs) -> None:
        self._graphs = graphs
        super().__init__(bundle)

    def _open(self, backend: str, threads: int | None) -> Backend:
        return self._graphs


class TritonPythonModel:
    """What Triton calls; one instance answers one question at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the bundle that the model's config names."""
        import triton_python_backend_utils as utils  # type: ignore[import-not-found]

        self._utils = utils
        config = json.loads(args["model_config"])
        bundle = Bundle.open(config["parameters"]["bundle"]["string_value"])
        self._pipeline: Pipeline = _Pipeline(
            bundle, TritonGraphs(bundle.manifest, runner(utils, config["name"]))
        )

    def execute(self, requests: list[Any]) -> None:
        """Answer each, in pieces."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                answer = self._answer(request, lambda text, to=sender: to.send(self._response(text)))
                sender.send(self._response("", answer))
            except Exception as error:  # whatever it is, the next question is answered
                if not isinstance(error, DivpruneError):
                    _log.exception("A question failed.")
                said = f"{error} ({error.code})" if isinstance(error, DivpruneError) else "The model failed."
                sender.send(self._utils.InferenceResponse(error=self._utils.TritonError(said)))
            sender.send(flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self, request: Any, stream: Any) -> Answer:
        def given(name: str) -> list[Any]:
            tensor = self._utils.get_input_tensor_by_name(request, name)
            return [] if tensor is None else tensor.as_numpy().reshape(-1).tolist()

        def text(name: str) -> str | None:
            found = given(name)
            return found[0].decode("utf-8", "replace") if found else None

        images = [image_of_bytes(data, "The image", FORMATS, MAX_PIXELS) for data in given("image")]
        options = {name: kind(found[0]) for name, kind in OPTIONS.items() if (found := given(name))}
        selector = text("selector")
        pipeline = self._pipeline if selector is None else self._pipeline.with_selector(selector)
        return pipeline.ask(images or None, text("question") or "", stream=stream, **options)

    def _response(self, text: str, answer: Answer | None = None) -> Any:
        kept = np.empty(0, np.int64) if answer is None else answer.kept_indices
        reason = "" if answer is None else answer.finish_reason
        values = {
            "text": np.array([text.encode()], np.object_),
            "finish_reason": np.array([reason.encode()], np.object_),
            "kept_indices": kept,
            "prompt_tokens": np.array([0 if answer is None else answer.prompt_tokens]),
            "tokens": np.array([0 if answer is None else len(answer.token_ids)]),
        }
        return self._utils.InferenceResponse(
            [self._utils.Tensor(name, value) for name, value in values.items()]
        )
