"""The machine and the software that a result was obtained with."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

_PACKAGES = ("sparsyfed_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def describe_environment() -> dict[str, Any]:
  """Returns `device`, a line of text, and `versions` by package."""
  versions = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = "not installed"  # run from a checkout
  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == "cpu":
    kind += f" ({os.cpu_count()} cores, {platform.machine()})"
  return {
    "device": f"{len(devices)} x {kind}",
    "versions": versions,
  }
