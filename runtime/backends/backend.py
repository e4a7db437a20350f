"""The interface between the generation loop and whatever runs the graphs.

Tensors that only travel from graph to graph are opaque and stay on the device; the host sees pixels, ids,
indices, and the next id or one row of logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import VISUAL_TOKENS, SelectorInfo
from divprune_edge.processing.image_input import Groups
from divprune_edge.runtime.backends.session import DeviceTensor, LanguageSession


@dataclass(frozen=True)
class Encoded:
    """What the vision encoder made of images: visual tokens [tiles, n, D] and the signals asked for.

    Or the same of all tiles that several runs took, or what was assembled of them: [groups, N, D].
    """

    outputs: Mapping[str, DeviceTensor]
    """By the names that they have as outputs of a graph."""

    @property
    def tokens(self) -> DeviceTensor:
        """The visual tokens among them."""
        return self.outputs[VISUAL_TOKENS]


class Backend(Protocol):
    """The graphs of a bundle on one device."""

    @property
    def name(self) -> str:
        """What runs the graphs, as reported with an answer."""
        ...

    @property
    def images_at_once(self) -> int:
        """Images of one tile that one run of the vision encoder and of a selector takes."""
        ...

    @property
    def computes_beside(self) -> bool:
        """Whether one thread may encode and select while another one runs the language model."""
        ...

    def load(self, selector: SelectorInfo | None) -> None:
        """Create the sessions that a question with ``selector`` needs, so that no question pays for it.

        Raises:
            UserError: a graph cannot be loaded on the device that was asked for.
        """
        ...

    def encode(self, inputs: Mapping[str, npt.NDArray[Any]], signals: Sequence[str] = ()) -> Encoded:
        """Run the vision encoder.

        Args:
            inputs: what the preprocessing made, by name: ``pixels`` [tiles, H, W, 3], and what a family adds.
            signals: outputs beyond the visual tokens that a selector will need.
        """
        ...

    def stack(self, runs: Iterable[Encoded], shapes: Mapping[str, Sequence[int]]) -> Encoded:
        """Return what several runs of the encoder give, one behind the other, in ``shapes``; let go of each once taken.

        Args:
            runs: each is begun when the one before has been taken.
            shapes: of the visual tokens and of each signal, all runs together, by name.
        """
        ...

    def assemble(self, encoded: Encoded, groups: Groups) -> Encoded:
        """Return the rows of an image, [groups, N, D], that the tokens of its tiles make; its signals as well.

        Args:
            encoded: what :meth:`encode` or :meth:`stack` returned of its tiles, with all signals that the encoder
                gives.
            groups: which tokens make which rows.
        """
        ...

    def part(self, encoded: Encoded, index: int) -> Encoded:
        """Return one of several images' tokens and signals, [1, …]."""
        ...

    def select(
        self, encoded: Encoded, selector: SelectorInfo, valid: npt.NDArray[np.bool_]
    ) -> tuple[DeviceTensor, npt.NDArray[np.int64]]:
        """Prune visual tokens [batch, N, D] to [batch, K, D].

        Args:
            encoded: what :meth:`encode` returned, with the selector's signals.
            selector: keeps K.
            valid: bool [batch, N]; rows that may be picked, K or more of each image.

        Returns:
            The kept tokens and their indices, int64 [batch, K]: ascending, or for a method that merges, what
            each kept token stands for.
        """
        ...

    def take(self, tensor: DeviceTensor, rows: npt.NDArray[np.int64]) -> DeviceTensor:
        """Return some rows of a tensor [1, N, …], in the order given."""
        ...

    def join(self, tensors: Sequence[DeviceTensor], shape: Sequence[int]) -> DeviceTensor:
        """Return tensors of one type, one behind the other, as one of ``shape``; a single one may be the same."""
        ...

    def to_host(self, tensor: DeviceTensor) -> npt.NDArray[Any]:
        """Return a tensor's values on the host."""
        ...

    def to_device(self, array: npt.NDArray[Any]) -> DeviceTensor:
        """Return a tensor with the values of ``array``, where the graphs run."""
        ...

    def session(self, slots: int = 1) -> LanguageSession:
        """Return room for so many sequences at a time on the language model.

        Raises:
            UserError: the backend has no room for so many.
        """
        ...
