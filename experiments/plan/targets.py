"""The accelerators that runs are planned for, and the compilers that know them."""

import functools
import importlib.resources
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from experiments.run.config import ConfigError
from sparsyfed_jax.fed.memory import free_bytes

_GIB = 2**30
_GPU_SHARE = 0.75  # of a GPU's memory that jax takes at its start
_GPU_SHARE_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Chip(NamedTuple):
  """A kind of accelerator; facts as their sources have them."""

  name: str
  title: str
  platform: str  # "tpu", "gpu" or "cpu", as a `jax.Device` has it
  memory_bytes: int  # that programs may use, of one chip; 0 of a CPU, whose free memory counts
  source: str  # of the memory
  shapes: tuple[str, ...]  # known topologies
  hertz: float = 0.0  # clock; 0 where estimated cycles are not told


# What a TPU's compiler leaves to programs is less than the data sheets have: it says so when a
# program is too large. Clocks are those that the published peaks follow from.
_OF_COMPILER = "what libtpu 0.0.52 lets programs use"
_V5E = "1x1 1x2 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_V5P = "1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4"
_V6E = "1x1 1x2 2x2 2x4 4x4 4x8 8x8 16x16"
_GPUS = tuple(map(str, range(1, 9)))
CHIPS: dict[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip(
      *("v5e", "TPU v5e", "tpu", int(15.75 * _GIB), f"{_OF_COMPILER}, of 16 GiB"),
      *(tuple(_V5E.split()), 1.5e9),
    ),
    Chip(
      *("v5p", "TPU v5p", "tpu", int(95.73 * _GIB), f"{_OF_COMPILER}, of 95 GB"),
      *(tuple(_V5P.split()), 1.75e9),
    ),
    Chip(
      *("v6e", "TPU v6e", "tpu", int(31.24 * _GIB), f"{_OF_COMPILER}, of 32 GB"),
      *(tuple(_V6E.split()), 1.75e9),
    ),
    Chip("h100", "NVIDIA H100 80GB HBM3", "gpu", 84942979072, "as the driver tells it", _GPUS),
    Chip("cpu", "CPU", "cpu", 0, "what is free on this machine", _GPUS),
  )
}
_EXTRAS = {"tpu": ("plan-tpu", ("libtpu",)), "gpu": ("plan-gpu", ("jax_plugins.xla_cuda12",))}


class Target(NamedTuple):
  """Chips that work together."""

  chip: Chip
  shape: str  # one of the chip's

  @property
  def name(self) -> str:
    """As the flag --target has it."""
    return f"{self.chip.name}:{self.shape}"

  @property
  def num_chips(self) -> int:
    """How many there are."""
    return math.prod(map(int, self.shape.split("x")))


def parse(text: str) -> Target:
  """Reads the flag --target, such as v5e:2x4; raises ConfigError."""
  name, _, shape = text.partition(":")
  if name not in CHIPS or shape not in CHIPS[name].shapes:
    known = CHIPS[name].shapes if name in CHIPS else ()
    right = (
      f"{name}: and one of {', '.join(known)}"
      if known
      else f"{', '.join(CHIPS)} and a shape, such as v5e:2x4 or h100:8"
    )
    raise ConfigError(f"--target={text}: must be {right}")
  return Target(CHIPS[name], shape)


def require_compiler(target: Target) -> None:
  """Checks that the compiler for a target is installed; raises ConfigError."""
  extra, modules = _EXTRAS.get(target.chip.platform, ("", ()))
  if not all(map(_is_installed, modules)):
    raise ConfigError(
      f"--target={target.name}: needs a compiler that is not installed; pip install"
      f" '.[{extra}]' brings it, in an environment of its own"
    )


def _is_installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # the package that it would be in
    return False


def environment(target: Target) -> dict[str, str]:
  """Makes the variables with which a process compiles for a target and opens no device."""
  flags = os.environ.get("XLA_FLAGS", "")
  if target.chip.platform == "cpu":
    flags = f"{flags} --xla_force_host_platform_device_count={target.num_chips}".strip()
  elif target.chip.platform == "tpu":
    flags = ""  # libtpu reads them, too, and ends the process for one of a CPU
  return {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # compilation is timed
    "XLA_FLAGS": flags,
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run: others may compile meanwhile
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
  }


@functools.cache
def devices_of(target: Target) -> Sequence[Any]:
  """Describes the devices of a target to jax, in a process of that `environment`."""
  if target.chip.platform == "cpu":
    return jax.devices("cpu")[: target.num_chips]
  if target.chip.platform == "gpu":
    facts = importlib.resources.files("experiments.plan") / f"{target.chip.name}.txtpb"
    return topologies.get_topology_desc(
      "",
      platform="cuda",
      topology=f"1x1x{target.shape}",
      target_config=facts.read_text(encoding="utf-8"),
    ).devices
  return topologies.get_topology_desc(platform="tpu", topology_name=target.name).devices


def usable_bytes(target: Target) -> tuple[int, str]:
  """Returns the memory of a chip that a run may use, and where the number is from."""
  chip = target.chip
  if chip.platform == "cpu":
    return int(free_bytes(jax.devices("cpu")[0])) // target.num_chips, chip.source
  if chip.platform == "gpu":
    share = float(os.environ.get(_GPU_SHARE_VARIABLE, _GPU_SHARE))
    source = f"{share:.0%} of {chip.memory_bytes / 1e9:.1f} GB; {_GPU_SHARE_VARIABLE} changes it"
    return int(share * chip.memory_bytes), source
  return chip.memory_bytes, chip.source
