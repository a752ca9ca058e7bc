"""The devices of a run's clients: what each can do, and when it is available."""

import csv
import io
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run.choices import ConfigError
from experiments.run.config import Config
from experiments.run.settings import method_of, own_hyper, own_options
from experiments.run.systems import DAILY, DAY, PHONES, systems_of
from sparsyfed_jax.data import partition
from sparsyfed_jax.fed.clock import Fleet, Hours, Kinds, hours_of
from sparsyfed_jax.fed.timing import Flops, Timing
from sparsyfed_jax.metrics.flops import LayerCost

_TABLE = pathlib.Path(__file__).parents[1] / "phones.csv"
_NEEDED = ("profile", "share", "gflops", "down_mbps", "up_mbps")
_WATTS = ("compute_watts", "radio_watts")
_BEGIN = 22 * 3600  # seconds of the day around which clients become available
_GIGA, _BYTES_OF_MEGABIT = 1e9, 1e6 / 8


def make_fleet(config: Config, num_clients: int, key: jax.Array) -> Fleet | tuple[()]:
  """Makes the devices of all clients on the host; () where rounds are not timed.

  Args:
    config: checked flags.
    num_clients: how many there are.
    key: of the run's partition.

  Raises:
    ConfigError: a file cannot be read, or holds what is wrong.
  """
  own = systems_of(config)
  if own.device_profiles is None:
    return ()
  shares, kinds = read_profiles(own.device_profiles)
  ends = np.round(np.cumsum(shares) * num_clients).astype(int)
  dealt = np.repeat(np.arange(len(shares), dtype=np.int32), np.diff(ends, prepend=0))
  order = partition.generator(jax.random.fold_in(key, 4)).permutation(num_clients)
  hours: Hours | tuple[()] = ()
  if own.availability == DAILY:
    hours = _daily(own.daily_hours, own.daily_spread, num_clients, jax.random.fold_in(key, 5))
  elif own.availability is not None:
    hours = read_hours(own.availability, num_clients, own.availability_period)
  return Fleet(dealt[order], kinds, hours)


def counted_by(config: Config) -> Any:
  """Makes what the FLOPs are counted by in a program that times rounds; None in others."""
  return own_hyper(config) if systems_of(config).device_profiles else None


def make_timing(config: Config, costs: Sequence[LayerCost], layers: Sequence[str]) -> Timing | None:
  """Makes how the rounds of a run are timed; None where they are not.

  Args:
    config: checked and resolved flags.
    costs: of the model's layers, in the order of computing.
    layers: names of the prunable leaves' layers.

  Raises:
    ConfigError: the FLOPs of the method cannot be traced.
  """
  own = systems_of(config)
  if own.device_profiles is None:
    return None
  flops = _flops(config, costs, layers)
  shapes = jnp.zeros(len(layers)), jnp.zeros(())
  try:
    jax.eval_shape(flops, *shapes)
  except jax.errors.ConcretizationTypeError as error:
    raise ConfigError(
      f"--device_profiles: must be left out with --algorithm={config.algorithm}, whose layer_shares"
      " compares numbers by `if`, `min` or `max`, which cannot be traced; metrics.flops.larger can"
    ) from error
  deadline = math.inf if own.deadline is None else own.deadline
  return Timing(config.clients_per_round, deadline, flops, _has_energy(own.device_profiles))


def _flops(config: Config, costs: Sequence[LayerCost], layers: Sequence[str]) -> Flops:
  method, options, hyper = method_of(config), own_options(config), own_hyper(config)
  places = {name: place for place, name in enumerate(layers)}

  def flops(densities: jax.Array, sparsity: jax.Array) -> jax.Array:
    total = jnp.float32(0)
    for number, (name, *dense) in enumerate(costs):
      parts: Sequence[Any] = [1.0] * len(dense)  # of a layer that has no prunable parameter
      if name in places:
        traced: Any = densities[places[name]], 1 - sparsity
        parts = method.layer_shares(options, hyper, name, number == 0, *traced)
      total += sum(jnp.float32(one) * part for one, part in zip(dense, parts, strict=True))
    return total

  return flops


def read_profiles(name: str) -> tuple[np.ndarray, Kinds]:
  """Reads a table of devices: the share of clients of each kind, and what it does.

  Raises:
    ConfigError: naming file, line and column.
  """
  path = _TABLE if name == PHONES else pathlib.Path(name).expanduser()
  rows: list[dict[str, float]] = []
  known: set[str] = set()
  for place, row in _read("device_profiles", path, _NEEDED, f"{PHONES} or the path of a CSV file"):
    profile = row["profile"]
    if not profile or profile in known:
      raise ConfigError(f"{place}: profile={profile!r}: must be a name that no other line has")
    known.add(profile)
    numbers = {column: _number(place, row, column) for column in _NEEDED[1:]}
    for column, value in numbers.items():
      if value <= 0:
        raise ConfigError(f"{place}: {column}={value:g}: must be positive")
    for column in _WATTS:
      numbers[column] = _number(place, row, column) if column in row else 0.0
      if numbers[column] < 0:
        raise ConfigError(f"{place}: {column}={numbers[column]:g}: must be at least 0")
    rows.append(numbers)
  if not rows:
    raise ConfigError(f"--device_profiles={name}: must hold a profile at least, holds none")

  def values(name: str, scale: float = 1.0) -> np.ndarray:
    return np.array([scale * row[name] for row in rows], np.float32)

  shares = np.array([row["share"] for row in rows])
  if not math.isclose(shares.sum(), 1, abs_tol=1e-6):
    raise ConfigError(
      f"--device_profiles={name}: share: must be 1 over all profiles, is {shares.sum():g}"
    )
  down, up = values("down_mbps", _BYTES_OF_MEGABIT), values("up_mbps", _BYTES_OF_MEGABIT)
  return shares, Kinds(values("gflops", _GIGA), down, up, *map(values, _WATTS))


def _has_energy(name: str) -> bool:
  """Tells whether a table of devices says what they consume."""
  kinds = read_profiles(name)[1]
  return bool(np.any(kinds.compute_watts) or np.any(kinds.radio_watts))


def read_hours(name: str, num_clients: int, period: int | None) -> Hours:
  """Reads a trace of when clients are available; those that it does not name never are.

  Raises:
    ConfigError: naming file, line and client.
  """
  path = pathlib.Path(name).expanduser()
  found: list[list[tuple[float, float, str]]] = [[] for _ in range(num_clients)]
  right = f"{DAILY} or the path of a CSV file"
  for place, row in _read("availability", path, ("client", "from", "to"), right):
    text = row["client"]
    if not (text.isascii() and text.isdigit() and int(text) < num_clients):
      raise ConfigError(
        f"{place}: client={text}: must be a number from 0 to {num_clients - 1}, that of a client"
      )
    begin, end = _number(place, row, "from"), _number(place, row, "to")
    if not 0 <= begin < end:
      raise ConfigError(
        f"{place}: client {text}, from={begin:g}: must be at least 0 and below to={end:g}"
      )
    if end > (period or 2**24):
      raise ConfigError(
        f"{place}: client {text}, to={end:g}: must be at most"
        f" {f'--availability_period={period}' if period else '2^24 seconds'}"
      )
    found[int(text)].append((begin, end, place))
  for client, own in enumerate(found):
    own.sort()
    for (_, end, _), (begin, _, place) in zip(own, own[1:], strict=False):
      if begin < end:
        raise ConfigError(
          f"{place}: client {client}, from={begin:g}: must be at least {end:g}, where its interval"
          " before ends: they overlap"
        )
  if not any(found):
    raise ConfigError(f"--availability={name}: must hold an interval at least, holds none")
  last = max(end for own in found for _, end, _ in own)
  days = DAY * math.ceil(last / DAY)
  return hours_of([[(begin, end) for begin, end, _ in own] for own in found], period or days)


def _daily(hours: float, spread: float, num_clients: int, key: jax.Array) -> Hours:
  """Makes days on which each client is available for some hours, from a time of its own."""
  if hours == 24:
    begins = np.zeros(num_clients)
  else:
    normal = partition.generator(key).standard_normal(num_clients)
    begins = np.round(_BEGIN + 3600 * spread * normal) % DAY
  ends = begins + np.round(3600 * hours)
  is_cut = ends > DAY  # at midnight
  # One interval of each client, or two; in its order.
  opens = np.stack([np.where(is_cut, 0, begins), begins], axis=1)
  closes = np.stack([np.where(is_cut, ends - DAY, ends), np.minimum(ends, DAY)], axis=1)
  is_there = np.stack([np.ones(num_clients, bool), is_cut], axis=1)
  starts = np.append(0, np.cumsum(1 + is_cut)).astype(np.int32)

  def padded(each: np.ndarray) -> np.ndarray:
    return np.append(each[is_there], 0).astype(np.float32)

  return Hours(starts, padded(opens), padded(closes), np.int32(DAY))


def _read(
  flag: str, path: pathlib.Path, needed: Sequence[str], right: str
) -> Iterator[tuple[str, Mapping[str, str]]]:
  """Reads the rows of a CSV file, each with the words that name it."""
  start = f"--{flag}={path}"
  try:
    content = path.read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "is not UTF-8"
    raise ConfigError(f"{start}: must be {right}, cannot be read: {reason}") from error
  reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
  try:
    columns = reader.fieldnames or []
    missing = [column for column in needed if column not in columns]
    if missing:
      raise ConfigError(f"{start}: must have the columns {', '.join(needed)}; lacks {missing[0]}")
    for row in reader:
      place = f"{start}, line {reader.line_num}"
      if None in row or None in row.values():
        raise ConfigError(f"{place}: must have {len(columns)} columns")
      yield place, {name: value.strip() for name, value in row.items()}
  except csv.Error as error:
    raise ConfigError(f"{start}, line {reader.line_num}: must be CSV: {error}") from error


def _number(place: str, row: Mapping[str, str], column: str) -> float:
  try:
    value = float(row[column])
  except ValueError:
    value = math.nan
  if not math.isfinite(value):
    raise ConfigError(f"{place}: {column}={row[column]}: must be a number")
  return value
