"""One archive for a Jetson: the bundle, the runtime as a wheel, the plugin's sources, and what installs them there."""

from __future__ import annotations

from divprune_edge.export.package.package import archive_path, check_package, write_package

__all__ = ["archive_path", "check_package", "write_package"]
