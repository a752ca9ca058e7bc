"""The machine and the software that a run has."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

from experiments.flags import AUTO

_PACKAGES = ("sparsyfed_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def describe_environment() -> dict[str, Any]:
  """Returns what the bits of a result may depend on.

  Returns:
    `device`, a line of text; `jax_enable_x64` and `xla_flags`, which change what is compiled; and
    `versions` by package.
  """
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
    "jax_enable_x64": bool(jax.config.values["jax_enable_x64"]),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions,
  }


def keep_compiled(directory: str) -> None:
  """Lets compiled programs be kept for later processes.

  Args:
    directory: the flag --compilation_cache_dir.
  """
  if directory == AUTO:
    if jax.config.values["jax_compilation_cache_dir"]:
      return  # by the environment variable, say
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = str(pathlib.Path(cache) / "sparsyfed_jax" / "compiled")
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory) or None)
