"""The two libraries that are called TensorRT, and the facts in which they differ: nothing else asks which one it is.

TensorRT comes with JetPack and for datacenter GPUs, times kernels on the GPU that it builds for, and takes plugins.
TensorRT-RTX is for GeForce and RTX cards: the same API under another module, engines that are built ahead of time on
any machine, kernels that are made on the card when an engine is first run, and no plugins.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.hints import install

Name = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Edition:
    """One of the two.

    Attributes:
        name: of the backend that runs its engines.
        title: for people.
        module: what Python imports.
        install: what to do where the module is missing.
        ahead_of_time: engines are built for GPUs that are named, where there may be none, and finished on the card by
            its driver. Else they are built on the GPU that will run them.
        plugins: a network may hold plugin layers. Without, our kernel is called between the engines.
        shares_weights: the optimisation profiles of an engine share its weights. Where each holds its own copy, decode
            and prefill share a profile.
    """

    name: Name
    title: str
    module: str
    install: str
    ahead_of_time: bool
    plugins: bool
    shares_weights: bool

    def load(self) -> Any:
        """Return the module.

        Raises:
            UserError: it is not installed, or does not load.
        """
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise UserError(
                f"{self.title}'s Python module cannot be loaded ({error}): {self.install}.",
                code="tensorrt-missing",
            ) from error


TENSORRT = Edition(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    install="on a Jetson it comes with JetPack, for an environment made with 'python3 -m venv "
    "--system-site-packages'; elsewhere 'pip install tensorrt'",
    ahead_of_time=False,
    plugins=True,
    # It is asked to (extra_memory_target), which is a hint.
    shares_weights=True,
)
TENSORRT_RTX = Edition(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    install=f"'pip install tensorrt-rtx-cu13', or the whole extra with {install('rtx')}",
    ahead_of_time=True,
    plugins=False,
    # Measured: with 1.7, a language model's engine of two profiles is as large as two engines, whatever the hint. (An
    # encoder's profiles, which all multiply many rows, share its weights.)
    shares_weights=False,
)
EDITIONS: Mapping[str, Edition] = MappingProxyType({one.name: one for one in (TENSORRT, TENSORRT_RTX)})

_POLYGRAPHY = "POLYGRAPHY_USE_TENSORRT_RTX"


def use(edition: Edition) -> None:
    """Settle which edition this process builds with; Polygraphy knows only one.

    Raises:
        DivpruneError: the process has loaded Polygraphy for the other one already, as the builder does.
    """
    before = in_use()
    if edition is not before and sys.modules.get("polygraphy"):
        raise DivpruneError(
            f"This process has loaded Polygraphy for {before.title}, so it cannot build with {edition.title}: use "
            "another process.",
            code="tensorrt-editions-mixed",
        )
    os.environ[_POLYGRAPHY] = str(int(edition is TENSORRT_RTX))


def in_use() -> Edition:
    """Return the edition that this process builds with; TensorRT where nobody said."""
    return TENSORRT if os.environ.get(_POLYGRAPHY, "0") == "0" else TENSORRT_RTX
