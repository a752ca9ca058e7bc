"""The flags that say on what devices the clients train, when they are there, and how long rounds
wait for them.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from experiments.run.choices import ConfigError
from sparsyfed_jax.fed.method import Knob

PHONES, DAILY = "phones", "daily"
DAY = 86400


class Systems(NamedTuple):
  """Flags of a run, besides those of `Config` and of its method."""

  device_profiles: Annotated[
    str | None,
    Knob(
      f"times rounds on devices: {PHONES} (a table that comes with the program), or FILE.csv with"
      " the columns profile, share (of the clients), gflops, down_mbps, up_mbps and, for energy,"
      " compute_watts and radio_watts; default: rounds are not timed"
    ),
  ] = None
  availability: Annotated[
    str | None,
    Knob(
      "when clients can be sampled, by the clock of --device_profiles: FILE.csv with the columns"
      f" client, from, to (numbers from 0, seconds), or {DAILY} (--daily_hours of each day);"
      " default: always"
    ),
  ] = None
  availability_period: Annotated[
    int | None,
    Knob(
      "seconds after which the intervals of --availability=FILE.csv repeat; default: as many whole"
      " days as hold them",
      low=1,
      high=2**24,
    ),
  ] = None
  daily_hours: Annotated[
    float, Knob("hours of a day that a client is available with --availability=daily", above=0)
  ] = 8.0
  daily_spread: Annotated[
    float,
    Knob(
      "standard deviation in hours of when they begin, around 22:00; the clock starts at 0:00",
      low=0,
    ),
  ] = 2.0
  over_selection: Annotated[
    float,
    Knob(
      "how many times --clients_per_round are sampled, of whom those count that report first",
      low=1,
    ),
  ] = 1.0
  deadline: Annotated[
    float | None,
    Knob("virtual seconds after which a round takes no more reports; default: none", above=0),
  ] = None


def systems_of(config: Any) -> Systems:
  """Collects these flags of a run."""
  return Systems(*(getattr(config, name) for name in Systems._fields))


def num_selected(config: Any) -> int:
  """Counts the clients that a round samples."""
  # Without the last digits, by which 10 * 1.1 is above 11.
  return math.ceil(round(config.clients_per_round * config.over_selection, 6))


def require_clients(config: Any, num_clients: int) -> None:
  """Raises ConfigError if a round samples more clients than there are."""
  if num_selected(config) > num_clients:
    factor = systems_of(config).over_selection
    times = "" if factor == 1 else f" with --over_selection={factor}"
    raise ConfigError(
      f"--clients_per_round={config.clients_per_round}{times}: must be at most the"
      f" {num_clients} clients of the data"
    )


def check_systems(config: Any, require: Callable[[bool, str, str], None]) -> None:
  """Checks these flags against each other."""
  own = systems_of(config)
  if own.device_profiles is None:
    for name in ("availability", "availability_period", "deadline"):
      require(
        getattr(own, name) is None, name, "given with --device_profiles, whose clock it reads"
      )
    require(own.over_selection == 1, "over_selection", "1 without --device_profiles")
    return
  require(
    bool(config.metrics), "device_profiles", "left out with --nometrics: bytes are not counted"
  )
  require(own.daily_hours <= 24, "daily_hours", "at most 24")
  is_trace = own.availability not in (None, DAILY)
  right = "given with --availability=FILE.csv"
  require(is_trace or own.availability_period is None, "availability_period", right)
  if config.num_clients is not None:
    count, most = num_selected(config), config.num_clients
    right = f"smaller: {count} clients would be sampled a round of --num_clients={most}"
    require(own.over_selection == 1 or count <= most, "over_selection", right)


def without_effect(config: Any) -> list[str]:
  """Names those of the flags that the others leave without effect."""
  return [] if config.availability == DAILY else ["daily_hours", "daily_spread"]
