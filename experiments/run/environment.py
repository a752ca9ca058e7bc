"""The machine and the software that a run has."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

from experiments.flags import AUTO

_DEVICES = "xla_force_host_platform_device_count"
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


def split_cpu(num_devices: int | None) -> None:
  """Makes a CPU as many devices as are asked for, at most one a core.

  To be called before anything uses a device; after that, nothing changes any more. A number that
  JAX_NUM_CPU_DEVICES or XLA_FLAGS say is kept.

  Args:
    num_devices: the flag --num_devices.
  """
  is_said = jax.config.values["jax_num_cpu_devices"] > 0 or _DEVICES in os.environ.get(
    "XLA_FLAGS", ""
  )
  count = min(num_devices or 1, len(os.sched_getaffinity(0)))
  if count > 1 and not is_said:
    with contextlib.suppress(RuntimeError):  # of a process that has devices already
      jax.config.update("jax_num_cpu_devices", count)


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
