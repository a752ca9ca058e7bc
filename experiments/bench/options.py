"""The flags of `experiments.bench`, and those of them that `experiments.scaling` has too."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags as absl_flags

from experiments import flags
from experiments.bench.workloads import SELECTION, WORKLOADS, choose
from experiments.run.choices import COMPUTE_DTYPES
from sparsyfed_jax.algorithms import DENSE, METHODS, OURS

BASELINE = DENSE
ON, OFF = METRICS = ("on", "off")  # what every round reports of models and masks


class Settings(NamedTuple):
  """How workloads are measured."""

  repeats: int = 20
  num_clients: int | None = None  # None leaves the workload's own number
  clients_per_round: int | None = None
  clients_per_chunk: str = flags.AUTO
  compute_dtype: str = "float32"
  metrics: tuple[str, ...] = (ON,)  # of METRICS


def define(table: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags."""
  define_settings(Settings(), table)
  known = ", ".join([*WORKLOADS, SELECTION])
  text = f"comma list among {known}; by default those that suit the backend"
  absl_flags.DEFINE_list("workload", [], text, flag_values=table)
  text = "clients of a round, instead of the workload's"
  absl_flags.DEFINE_integer("clients_per_round", None, text, flag_values=table)
  text = "on, off, or both: with what every round reports of models and masks, and without"
  absl_flags.DEFINE_list("metrics", [ON], text, flag_values=table)
  text = (
    "WORKLOAD=COMMAND: a program that does the same work in another framework, one round when it is"
    " its turn, as experiments/bench/interleave.py says. May be given for several workloads."
  )
  absl_flags.DEFINE_multi_string("peer_command", [], text, flag_values=table)
  text = "a new directory for bench.jsonl and table.md"
  absl_flags.DEFINE_string("output_dir", None, text, flag_values=table)
  text = "measure in this process, all workloads taking turns, and print nothing but JSON lines"
  absl_flags.DEFINE_boolean("in_process", False, text, flag_values=table)


def define_settings(defaults: Settings, table: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines --algorithm and the flags of `Settings` that `scaling` has too."""
  text = "comma list of methods"
  absl_flags.DEFINE_list("algorithm", [BASELINE, OURS], text, flag_values=table)
  text = "timed calls, of which the median counts"
  absl_flags.DEFINE_integer("repeats", defaults.repeats, text, flag_values=table)
  text = "clients of the federation, instead of the workload's"
  absl_flags.DEFINE_integer("num_clients", defaults.num_clients, text, flag_values=table)
  text = "clients vmapped, or auto"
  absl_flags.DEFINE_string("clients_per_chunk", defaults.clients_per_chunk, text, flag_values=table)
  text, known = "what products are computed in", COMPUTE_DTYPES
  absl_flags.DEFINE_enum("compute_dtype", defaults.compute_dtype, known, text, flag_values=table)


def read(
  table: absl_flags.FlagValues,
) -> tuple[list[str], list[str], Settings, dict[str, list[str]]]:
  """Reads the flags.

  Returns:
    Names of workloads, [] where none is given, names of methods, settings, and the peers' commands
    by workload.

  Raises:
    ConfigError: a value is not known or out of range.
  """
  values = table.flag_values_dict()
  names = list(dict.fromkeys(values["workload"]))
  _check_names("workload", names, [*WORKLOADS, SELECTION])
  metrics = tuple(dict.fromkeys(values["metrics"]))
  _check_names("metrics", metrics, METRICS)
  if not metrics:
    raise flags.ConfigError("--metrics: must be on, off, or both")
  algorithms, settings = read_settings(values)
  settings = settings._replace(clients_per_round=values["clients_per_round"], metrics=metrics)
  return names, algorithms, settings, _read_peers(values["peer_command"])


def read_settings(values: Mapping[str, Any]) -> tuple[list[str], Settings]:
  """Reads the flags of `define_settings`; the caller may replace the other fields.

  Returns:
    Names of methods, and settings.

  Raises:
    ConfigError: a value is not known or out of range.
  """
  fields = [name for name in Settings._fields if name not in ("clients_per_round", "metrics")]
  settings = Settings(**{name: values[name] for name in fields})
  if settings.repeats < 1:
    raise flags.ConfigError(f"--repeats={settings.repeats}: must be at least 1")
  chunk = settings.clients_per_chunk
  if chunk != flags.AUTO and not (chunk.isascii() and chunk.isdigit() and int(chunk) >= 1):
    raise flags.ConfigError(f"--clients_per_chunk={chunk}: must be auto or at least 1")
  algorithms = list(dict.fromkeys(values["algorithm"]))
  _check_names("algorithm", algorithms, sorted(METHODS))
  if not algorithms:
    raise flags.ConfigError("--algorithm: must name a method")
  return algorithms, settings


def check_sizes(names: Iterable[str], backend: str, settings: Settings) -> None:
  """Refuses more clients a round than a workload has on this backend."""
  for name in names:
    if name != SELECTION:
      choose(name, backend, settings.num_clients, settings.clients_per_round)


def _check_names(flag: str, names: Iterable[str], known: Sequence[str]) -> None:
  for name in names:
    if name not in known:
      raise flags.ConfigError(f"--{flag}={name}: must be among {', '.join(known)}")


def _read_peers(pairs: Iterable[str]) -> dict[str, list[str]]:
  peers: dict[str, list[str]] = {}
  for pair in pairs:
    name, _, command = pair.partition("=")
    if name not in WORKLOADS or name in peers:
      raise flags.ConfigError(
        f"--peer_command={pair}: must be WORKLOAD=COMMAND, at most one for each of"
        f" {', '.join(WORKLOADS)}"
      )
    try:
      peers[name] = shlex.split(command)
    except ValueError as error:
      raise flags.ConfigError(f"--peer_command={pair}: {error}") from error
    if not peers[name]:
      raise flags.ConfigError(f"--peer_command={pair}: must name a command after the =")
  return peers
