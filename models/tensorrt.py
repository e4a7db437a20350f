"""The two libraries that are called TensorRT, as the facts in which they differ, and what their versions decide.

TensorRT comes with JetPack and for datacenter GPUs, times kernels on the GPU that it builds for, and takes plugins.
TensorRT-RTX is for GeForce and RTX cards: the same API under another module, engines that are built ahead of time on
any machine, kernels that are made on the card when an engine is first run, and no plugins.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from divprune_edge.errors import UserError
from divprune_edge.hints import install

Version = tuple[int, int]
Name = Literal["tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Edition:
    """One of the two.

    Attributes:
        name: of the backend that runs its engines.
        title: for people.
        module: what Python imports.
        package: what pip installs.
        install: what to do where the module is missing.
        ahead_of_time: engines are built for GPUs that are named, where there may be none, and finished on the card by
            its driver. Else they are built on the GPU that will run them.
        sms: compute capabilities, times ten, that can be named.
        plugins: a network may hold plugin layers. Without, our kernel is called between the engines.
        shares_weights: the optimisation profiles of an engine share its weights. Where each holds its own copy, decode
            and prefill share a profile.
        listed: there are published lists of what its parser takes (``export.check.tables``).
    """

    name: Name
    title: str
    module: str
    package: str
    install: str
    ahead_of_time: bool
    sms: tuple[int, ...]
    plugins: bool
    shares_weights: bool
    listed: bool

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
    package="tensorrt",
    install="on a Jetson it comes with JetPack, for an environment made with 'python3 -m venv "
    "--system-site-packages'; elsewhere 'pip install tensorrt'",
    ahead_of_time=False,
    sms=(),
    plugins=True,
    # It is asked to (extra_memory_target), which is a hint.
    shares_weights=True,
    listed=True,
)
TENSORRT_RTX = Edition(
    name="tensorrt-rtx",
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    package="tensorrt-rtx-cu13",
    install=f"'pip install tensorrt-rtx-cu13', or the whole extra with {install('rtx')}",
    ahead_of_time=True,
    # What 1.7 builds our graphs for; for sm_75 it lacks the product of float32 matrices.
    sms=(80, 86, 89, 120, 121),
    plugins=False,
    # Measured: with 1.7, a language model's engine of two profiles is as large as two engines, whatever the hint. (An
    # encoder's profiles, which all multiply many rows, share its weights.)
    shares_weights=False,
    listed=False,
)
EDITIONS: Mapping[str, Edition] = MappingProxyType({one.name: one for one in (TENSORRT, TENSORRT_RTX)})

LAST_STRIPPED = (10, 6)
"""Up to here the ONNX parser prefers a node's local function to the plugin: the file must not have one."""


def parse_version(version: str) -> Version:
    """Return (major, minor) of a version such as ``10.3`` or ``10.16.2``.

    Raises:
        UserError: it is not a version.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.|$)", version)
    if match is None:
        raise UserError(
            f"'{version}' is not a TensorRT version: give one such as 10.3 or 11.4.",
            code="tensorrt-version-invalid",
        )
    return int(match.group(1)), int(match.group(2))


def needs_stripped(version: str) -> bool:
    """Whether this TensorRT needs the selector file without its local function."""
    return parse_version(version) <= LAST_STRIPPED
