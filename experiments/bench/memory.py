"""The memory that programs plan for, and that a process takes."""

import pathlib
import re
import resource
import sys

import jax


def program_memory_bytes(compiled: jax.stages.Compiled) -> int | None:
  """Adds up what the compiler plans for: arguments with all clients' data, results, temporaries."""
  sizes = compiled.memory_analysis()
  if sizes is None:
    return None
  used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
  return used - sizes.alias_size_in_bytes


def forget_peak() -> None:
  """Lets the largest memory of this process, as Linux knows it, start anew."""
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
  except OSError:
    pass  # then it is that of the whole process


def peak_memory_bytes() -> int:
  statistics_of_device = jax.devices()[0].memory_stats()
  if statistics_of_device:
    return statistics_of_device["peak_bytes_in_use"]
  status = pathlib.Path("/proc/self/status")
  text = status.read_text(encoding="utf-8") if status.exists() else ""
  found = re.search(r"VmHWM:\s*(\d+) kB", text)
  if found:
    return int(found.group(1)) * 1024
  largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return largest if sys.platform == "darwin" else largest * 1024
