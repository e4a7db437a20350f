"""TensorRT's versions, and what they decide."""

from __future__ import annotations

import pytest
from raising import refused

from divprune_edge.models.targets import TARGETS
from divprune_edge.models.tensorrt import TENSORRT, needs_stripped, parse_version


@pytest.mark.parametrize(
    ("version", "stripped"),
    [("10.0", True), ("10.3.0", True), ("10.6", True), ("10.7", False), ("11.0", False)],
)
def test_which_file(version: str, stripped: bool) -> None:
    assert needs_stripped(version) == stripped


@pytest.mark.parametrize("version", ["ten", "10", "10.x", "", "v10.3"])
def test_what_is_no_version(version: str) -> None:
    with refused("tensorrt-version-invalid", f"'{version}'"):
        parse_version(version)


def test_versions_are_compared_as_numbers() -> None:
    assert (
        parse_version("10.3.0") == parse_version("10.3") < parse_version("10.16.2.10") < parse_version("11.0")
    )


def test_a_targets_versions_are_such() -> None:
    """Of either edition; and what only one of them has belongs to it."""
    for target in TARGETS.values():
        assert (target.edition is None) == (target.tensorrt is None)
        if target.edition is not None and target.tensorrt is not None:
            assert (parse_version(target.tensorrt) >= (10, 0)) == (target.edition is TENSORRT)
            assert set(target.sms) <= set(target.edition.sms) or target.edition.listed
