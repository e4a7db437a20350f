"""Rotary position embedding (Su et al. 2021): inverse frequencies and the two scalings in use."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.models.files import Config, setting

_CONTEXT = "original_max_position_embeddings"


@dataclass(frozen=True)
class RopeSpec:
    """``theta`` and, for the scaled kinds, their parameters.

    ``kind`` is ``default``, ``linear`` (positions divided by ``factor``) or ``llama3`` (low frequencies
    divided by ``factor``, the band between two wavelengths interpolated; Llama 3.1 model card). ``sections`` are how
    many angles are of a token's time, height and width, where it has three positions.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context: int = 8192
    sections: tuple[int, ...] = ()
    interleaved: bool = False

    @property
    def axes(self) -> int:
        """Positions of a token: one, or time, height and width."""
        return 3 if self.sections else 1

    def axis_of(self, head_dim: int) -> npt.NDArray[np.int64]:
        """Return int64 [head_dim / 2]: which of the positions each angle is of (M-RoPE; Wang et al. 2024, 2409.12191).

        In sections one after the other, or interleaved t h w t h w … with time where a section is used up.
        """
        half = head_dim // 2
        if not self.sections:
            return np.zeros(half, np.int64)
        if not self.interleaved:
            return np.repeat(np.arange(3), self.sections)
        places = np.arange(half)
        axes = places % 3
        used_up = places >= 3 * np.array(self.sections)[axes]
        return np.where(used_up, 0, axes)

    def inverse_frequencies(self, head_dim: int) -> npt.NDArray[np.float32]:
        """Return float32 [head_dim / 2] with ``theta ** (-2 i / head_dim)``, scaled."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies: npt.NDArray[np.float32] = (1.0 / np.power(np.float32(self.theta), exponents)).astype(
            np.float32
        )
        if self.kind == "linear":
            frequencies = (frequencies / np.float32(self.factor)).astype(np.float32)
        if self.kind == "llama3":
            return self._llama3(frequencies)
        return frequencies

    def tables(
        self, head_dim: int, positions: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return (cosine, sine), each float32 [positions, head_dim / 2]."""
        angles = np.outer(np.arange(positions, dtype=np.float32), self.inverse_frequencies(head_dim))
        return np.cos(angles), np.sin(angles)

    def _llama3(self, frequencies: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        wavelength = 2 * math.pi / frequencies
        longest, shortest = (
            self.original_context / self.low_frequency_factor,
            self.original_context / self.high_frequency_factor,
        )
        share = (self.original_context / wavelength - self.low_frequency_factor) / (
            self.high_frequency_factor - self.low_frequency_factor
        )
        between = (1 - share) * frequencies / self.factor + share * frequencies
        scaled = np.where(wavelength > longest, frequencies / self.factor, frequencies)
        band = (wavelength <= longest) & (wavelength >= shortest)
        result: npt.NDArray[np.float32] = np.where(band, between, scaled).astype(np.float32)
        return result


def read_rope(config: Config, default_theta: float, mrope: RopeSpec | None = None) -> RopeSpec:
    """Return the RoPE of a text config, in the old (``rope_scaling``) or new (``rope_parameters``) spelling.

    ``mrope`` says how a token with three positions uses them, where its config says nothing.

    Raises:
        UserError: a scaling other than default, linear or llama3, or one that lacks its parameters.
    """
    parameters = setting(config, "rope_parameters", {}, dict) or setting(config, "rope_scaling", {}, dict)
    theta = setting(parameters, "rope_theta", setting(config, "rope_theta", default_theta, float), float)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    partial = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if theta <= 0:
        raise UserError(
            f"config.json: rope_theta is {theta}, expected more than 0.", code="config-value-invalid"
        )
    if partial not in (None, 1, 1.0):
        raise UserError(
            f"config.json: partial_rotary_factor is {partial}, supported is 1.", code="config-unsupported"
        )
    if kind == "default" or (kind == "mrope" and mrope is not None):
        return (
            RopeSpec(theta)
            if mrope is None
            else replace(mrope, theta=theta, sections=_sections(parameters, mrope))
        )
    if mrope is not None:
        raise UserError(
            f"config.json: RoPE scaling '{kind}' of three positions a token is not supported; default is.",
            code="config-unsupported",
        )
    if kind not in ("linear", "llama3"):
        raise UserError(
            f"config.json: RoPE scaling '{kind}' is not supported; default, linear and llama3 are.",
            code="config-unsupported",
        )
    names = ["factor"] if kind == "linear" else ["factor", "low_freq_factor", "high_freq_factor", _CONTEXT]
    values = []
    for name in names:
        value = setting(parameters, name, None, float)
        if value is None:
            raise UserError(
                f"config.json: RoPE scaling '{kind}' lacks '{name}'.", code="config-value-invalid"
            )
        if value <= 0:
            raise UserError(
                f"config.json: '{name}' is {value}, expected more than 0.", code="config-value-invalid"
            )
        values.append(value)
    if kind == "linear":
        return RopeSpec(theta, kind, values[0])
    factor, low, high, context = values
    return RopeSpec(theta, kind, factor, low, high, int(context))


def _sections(parameters: Config, mrope: RopeSpec) -> tuple[int, ...]:
    """Return how many angles are of time, height and width."""
    said: list[object] = setting(parameters, "mrope_section", list(mrope.sections), list)
    sections = tuple(
        size for size in said if isinstance(size, int) and not isinstance(size, bool) and size >= 0
    )
    if len(said) != 3 or len(sections) != 3:
        raise UserError(
            f"config.json: mrope_section is {str(said)[:80]}, expected three sizes: time, height and width.",
            code="config-value-invalid",
        )
    return sections
