"""The processes of a run on several hosts: all compute, the first one writes.

Processes have the same flags, data and versions, which is checked, and take part in every round.
https://docs.jax.dev/en/latest/multi_process.html
"""

import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments.flags import AUTO, DERIVED, Config, ConfigError
from experiments.run import links
from experiments.run.environment import describe_environment
from experiments.run.identity import differences
from experiments.run.settings import source_digest

JOIN_SECONDS = 300  # until a process that waits for others gives up
REFUSE_SECONDS = 60  # until one does that only has to tell that it refuses its flags
_PATIENCE = 10.0  # seconds until it says what it waits for
_ANNOUNCED = 512  # bytes
# Flags that may differ: who a process is, and what only the first one reads. Files of data may lie
# in different places; their content is compared.
FREE = (
  *("process_id", "coordinator", "dataset", "output_dir", "trackers", "target_accuracy", "target"),
  *("clients_per_chunk", "compilation_cache_dir", "discard_rounds"),
)


class EndedError(RuntimeError):
  """All processes end; the one-line message says why."""


# Like the connection of jax itself, of which a process has one.
_link: links.Link | None = None


def join(config: Config) -> None:
  """Connects this process to the others, if the flags name any; before anything uses a device.

  Raises:
    ConfigError: the others did not come, or cannot be reached.
  """
  if config.coordinator is None:
    return
  _connect(config.coordinator, config.num_processes, config.process_id, JOIN_SECONDS)


def refuse(error: Exception, argv: Sequence[str]) -> None:
  """Tells the other processes, which would wait for this one, that it refuses its flags.

  Args:
    error: why.
    argv: what the process was started with. Where it does not say who the others are, or is wrong
      about it, nothing is told.
  """
  given = {
    match[1]: match[2]
    for text in argv
    if (match := re.fullmatch(r"--?(coordinator|num_processes|process_id)=(.*)", text))
  }
  numbers = [given.get(name, "") for name in ("num_processes", "process_id")]
  address = given.get("coordinator", "")
  is_listed = re.fullmatch(r".+:\d+", address) and all(number.isdecimal() for number in numbers)
  if not is_listed or not int(numbers[1]) < int(numbers[0]):
    return
  try:
    _connect(address, int(numbers[0]), int(numbers[1]), REFUSE_SECONDS)
    agree("flags", error)
  except (ConfigError, EndedError):
    pass  # this process has its own to say


def agree(
  stage: str, refusal: Exception | None = None, facts: Mapping[str, Any] | None = None
) -> None:
  """Ends all processes if one refuses to go on, or if they differ; all of them have to ask.

  Args:
    stage: what this is about, the same in all processes.
    refusal: why this process refuses.
    facts: what has to be the same in all processes, by name, of what JSON can hold.

  Raises:
    EndedError: in every process, saying why.
  """
  refused = None if refusal is None else " ".join(str(refusal).split())
  _exchange({"stage": stage, "refused": refused, "facts": dict(facts or {})})


def smallest(number: int) -> int:
  """Finds the smallest of what the processes say; all of them have to ask.

  Raises:
    EndedError: another process refused to go on.
  """
  words = _exchange({"stage": "chunk", "refused": None, "facts": {}, "number": number})
  return min(word["number"] for word in words)


def shared(config: Config) -> dict[str, Any]:
  """Collects what has to be the same in all processes before they load the data, by name."""
  # What follows from other flags comes last: those are to be named.
  ordered = sorted(config._asdict().items(), key=lambda item: item[0] in DERIVED)
  given = {f"--{name}": value for name, value in ordered if name not in FREE}
  environment = describe_environment()
  names = ("jax_enable_x64", "xla_flags")
  code = {"the code of --algorithm": source_digest(config)}
  return given | code | {name: environment[name] for name in names} | environment["versions"]


def _exchange(word: Mapping[str, Any]) -> list[Any]:
  if _link is None:
    words = [word]
  else:
    words = _link.exchange(word)
  problem = word["refused"] or _problem(words)
  if problem:
    leave()
    raise EndedError(problem)
  return words


def leave() -> None:
  """Lets this process end, in a run that is complete or that all end, before the others do."""
  if _link is not None:
    _link.leave()


def _problem(words: Sequence[Mapping[str, Any]]) -> str | None:
  for rank, word in enumerate(words):
    if word["refused"]:
      return f"process {rank} refused: {word['refused']}"
  first = words[0]
  for rank, word in enumerate(words):
    if word["stage"] != first["stage"]:
      return f"process {rank} is at {word['stage']!r} while process 0 is at {first['stage']!r}"
    names = differences(first["facts"], word["facts"])
    if names:
      name = names[0]
      mine, others = first["facts"].get(name), word["facts"].get(name)
      more = f"; so do {', '.join(names[1:])}" if names[1:] else ""
      return (
        f"{name} differs: process 0 has {mine}, process {rank} has {others}{more};"
        " all processes need the same flags, data and versions"
      )
  return None


def _connect(coordinator: str, count: int | None, rank: int | None, seconds: int) -> None:
  global _link
  who = "this process" if rank is None else f"process {rank}"
  others = f"the other processes of --coordinator={coordinator}"

  def say() -> None:
    print(f"{who} waits for {others}, for {seconds} s at most", file=sys.stderr, flush=True)

  def give_up() -> None:
    print(
      f"error: {who} waited {seconds} s for {others}, in vain; all need the same --coordinator and"
      " --num_processes, and each its own --process_id from 0",
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)  # jax would abort, with a stack trace

  timers = [threading.Timer(_PATIENCE, say), threading.Timer(seconds, give_up)]
  for timer in timers:
    timer.daemon = True
    timer.start()
  limit = seconds + 60  # later than ours
  try:
    if coordinator == AUTO:  # from what SLURM, MPI, Kubernetes or a TPU pod say
      jax.distributed.initialize(initialization_timeout=limit)
    else:
      jax.distributed.initialize(coordinator, count, rank, initialization_timeout=limit)
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    text = f"--coordinator={coordinator}: the processes did not meet: {reason}"
    raise ConfigError(text) from error
  finally:
    for timer in timers:
      timer.cancel()
  if jax.process_count() == 1:
    return
  is_listed = coordinator != AUTO
  hosts = [coordinator.rpartition(":")[0].strip("[]")] if is_listed else links.own_hosts()
  try:
    _link = links.connect(jax.process_index(), jax.process_count(), hosts, _announce)
  except links.LinkError as error:
    raise ConfigError(f"--coordinator={coordinator}: {error}") from error


def _announce(text: str) -> str:
  padded = np.frombuffer(text.encode("ascii").ljust(_ANNOUNCED), np.uint8)
  received = np.asarray(multihost_utils.broadcast_one_to_all(padded))
  return bytes(received.astype(np.uint8)).decode("ascii").strip()


def is_first() -> bool:
  """Tells whether this process writes the files."""
  return jax.process_index() == 0


def largest(number: int) -> int:
  """Finds the largest of what the processes say; all of them have to ask."""
  if jax.process_count() == 1:
    return number
  return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def from_first(tree: Any) -> Any:
  """Gives all processes the arrays of the first one, as NumPy arrays or keys.

  Args:
    tree: pytree of arrays, of the same shapes in every process.
  """
  if jax.process_count() == 1:
    return tree

  def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

  bare = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)
  received = multihost_utils.broadcast_one_to_all(bare)
  return jax.tree.map(
    lambda leaf, like: jax.random.wrap_key_data(leaf) if is_key(like) else np.asarray(leaf),
    received,
    tree,
  )
