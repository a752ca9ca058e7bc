"""The flags of a run, their defaults, and what is refused before anything is compiled."""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from absl import flags

from sparsyfed_jax.algorithms import ALGORITHMS, IGNORED_HYPER
from sparsyfed_jax.fed.schedules import SPARSITY_SCHEDULES

MODELS = ("mlp", "cnn")
PARTITIONS = ("dirichlet", "dirichlet_per_class", "iid", "shards", "power_law", "natural")
SERVER_OPTIMIZERS = ("sgd", "momentum", "adagrad", "adam", "yogi")

_FLAGS = flags.FLAGS
_HYPER_OF_FLAG = {
  "sparsity": "density",
  "sparsity_schedule": "ramp_rounds",
  "sparsity_ramp_rounds": "ramp_rounds",
  "beta": "beta",
  "activation_floor": "activation_floor",
}
AUTO = "auto"


class ConfigError(ValueError):
  """A flag that cannot be obeyed; the one-line message names it, its value and what is right."""


class Config(NamedTuple):
  """The flags of a run, by name."""

  dataset: str
  model: str
  algorithm: str
  sparsity: float
  sparsity_schedule: str
  sparsity_ramp_rounds: int | None
  beta: float
  activation_floor: float
  num_clients: int | None
  clients_per_round: int
  rounds: int
  local_epochs: int
  batch_size: int
  client_lr: float
  client_lr_final: float | None
  weight_decay: float
  server_optimizer: str
  server_lr: float
  partition: str
  dirichlet_alpha: float
  shards_per_client: int
  power_law_exponent: float
  eval_every: int
  clients_per_chunk: str
  seed: int
  output_dir: str | None


DEFAULTS = Config(
  dataset="digits",
  model="cnn",
  algorithm="sparsyfed",
  sparsity=0.95,
  sparsity_schedule="cubic",
  sparsity_ramp_rounds=None,
  beta=1.25,
  activation_floor=0.0,
  num_clients=None,
  clients_per_round=10,
  rounds=100,
  local_epochs=5,
  batch_size=16,
  client_lr=0.5,
  client_lr_final=None,
  weight_decay=1e-3,
  server_optimizer="sgd",
  server_lr=1.0,
  partition="dirichlet",
  dirichlet_alpha=1.0,
  shards_per_client=2,
  power_law_exponent=1.0,
  eval_every=5,
  clients_per_chunk=AUTO,
  seed=0,
  output_dir=None,
)

_HELP = dict(
  dataset="digits (scikit-learn's, embedded), or npz:PATH (see the README for its arrays)",
  model=f"one of {', '.join(MODELS)}",
  algorithm=f"one of {', '.join(sorted(ALGORITHMS))}",
  sparsity="share of the prunable weights that a client's upload leaves at 0, in [0, 1)",
  sparsity_schedule="how uploads become sparse: constant (the paper's: full sparsity from round 1),"
  " cubic or linear (a ramp from dense over --sparsity_ramp_rounds)",
  sparsity_ramp_rounds="rounds of the ramp; default: half of --rounds",
  beta="exponent of powerpropagation, at least 1; 1 turns it off",
  activation_floor="least share of activations kept in the backward pass, in [0, 1]",
  num_clients="clients that share the training data; default: 100, or what a natural split has",
  clients_per_round="clients sampled each round, uniformly without replacement",
  rounds="rounds of the run, over which the client's rate decays",
  local_epochs="passes of a client over its examples each round",
  batch_size="examples of a local step; a client's last batch of an epoch may be smaller",
  client_lr="rate of the clients' SGD at the start",
  client_lr_final="rate after the last round, approached exponentially; default: client_lr / 10",
  weight_decay="L2 on all trained parameters, in the clients",
  server_optimizer=f"on the pseudo-gradient; one of {', '.join(SERVER_OPTIMIZERS)}",
  server_lr="rate of the server; 1 with sgd adopts the clients' mean",
  partition="how the training data is dealt to the clients: dirichlet (equal sizes, class"
  " frequencies of each client ~ Dirichlet(--dirichlet_alpha), as in the paper),"
  " dirichlet_per_class (sizes vary too), iid, shards (--shards_per_client of the sorted data),"
  " power_law (sizes ~ rank^-exponent), natural (the file's own clients)",
  dirichlet_alpha="concentration of the Dirichlet splits: 1000 is uniform, 0.1 very skewed",
  shards_per_client="of --partition=shards",
  power_law_exponent="of --partition=power_law",
  eval_every="rounds between two evaluations on the test set, which are also the rounds of one"
  " compiled call",
  clients_per_chunk="clients trained side by side (vmap), the rest one chunk after the other;"
  " auto: what measured best for the model and the backend",
  seed="of everything random: split, partition, initialisation, sampling, shuffling",
  output_dir="a new or empty directory; default: runs/<time>-<algorithm>-<dataset>",
)


def define(flag_values: flags.FlagValues = _FLAGS) -> None:
  """Defines the flags of a run in a table of flags, by default the program's."""
  types = Config.__annotations__
  definers: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    str | None: flags.DEFINE_string,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
  }
  for name, default in DEFAULTS._asdict().items():
    definers[types[name]](name, default, _HELP[name], flag_values=flag_values)


def parse(argv: list[str]) -> list[str]:
  """Parses flags for `absl.app.run`; a mistake is one line on stderr and exit code 2."""
  try:
    rest = _FLAGS(argv)
    if len(rest) > 1:
      raise flags.Error(f"{rest[1]!r} is not a flag; flags are written --name=value")
  except flags.Error as error:
    fail(flags.Error(str(error).removeprefix("ERROR:: ")))
  return rest


def fail(error: Exception, code: int = 2) -> NoReturn:
  """Ends the process with a one-line message and an exit code."""
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(code)


def read(flag_values: flags.FlagValues = _FLAGS) -> Config:
  """Collects parsed flags, checked as far as flags alone can tell.

  Raises:
    ConfigError: a value is out of range, or two contradict each other.
  """
  values: dict[str, Any] = {name: flag_values[name].value for name in Config._fields}
  config = Config(**values)
  check(config)
  return config


def check(config: Config) -> None:
  """Checks flags against their ranges and each other.

  Raises:
    ConfigError: naming the first flag that cannot be obeyed.
  """

  def require(is_met: bool, name: str, right: str) -> None:
    if not is_met:
      raise ConfigError(f"--{name}={getattr(config, name)}: must be {right}")

  def require_one_of(name: str, known: tuple[str, ...]) -> None:
    require(getattr(config, name) in known, name, "one of " + ", ".join(known))

  require_one_of("model", MODELS)
  require_one_of("algorithm", tuple(sorted(ALGORITHMS)))
  require_one_of("sparsity_schedule", tuple(SPARSITY_SCHEDULES))
  require_one_of("server_optimizer", SERVER_OPTIMIZERS)
  require_one_of("partition", PARTITIONS)
  require(0 <= config.sparsity < 1, "sparsity", "at least 0 and below 1")
  require(1 <= config.beta < math.inf, "beta", "at least 1 and finite")
  require(0 <= config.activation_floor <= 1, "activation_floor", "between 0 and 1")
  for name in ("clients_per_round", "rounds", "local_epochs", "batch_size", "eval_every"):
    require(getattr(config, name) >= 1, name, "at least 1")
  require(config.shards_per_client >= 1, "shards_per_client", "at least 1")
  for name in ("client_lr", "server_lr", "dirichlet_alpha"):
    require(0 < getattr(config, name) < math.inf, name, "positive and finite")
  for name in ("weight_decay", "power_law_exponent"):
    require(0 <= getattr(config, name) < math.inf, name, "at least 0 and finite")
  require(0 <= config.seed < 2**32, "seed", "between 0 and 2^32 - 1")
  if config.client_lr_final is not None:
    require(0 < config.client_lr_final < math.inf, "client_lr_final", "positive and finite")
  if config.num_clients is not None:
    require(config.num_clients >= 1, "num_clients", "at least 1")
    require(
      config.clients_per_round <= config.num_clients,
      "clients_per_round",
      f"at most --num_clients={config.num_clients}",
    )
  if config.sparsity_ramp_rounds is not None:
    ramp = "sparsity_ramp_rounds"
    require(
      config.sparsity_schedule != "constant" or config.sparsity_ramp_rounds == 0,
      ramp,
      "left out with --sparsity_schedule=constant, which has no ramp",
    )
    require(
      0 <= config.sparsity_ramp_rounds <= config.rounds,
      ramp,
      f"between 0 and --rounds={config.rounds}, or the target sparsity is never reached",
    )
  chunk = config.clients_per_chunk
  require(
    chunk == AUTO or (chunk.isascii() and chunk.isdigit() and int(chunk) >= 1),
    "clients_per_chunk",
    "auto or a whole number of at least 1",
  )


def ignored(config: Config) -> list[str]:
  """Names the flags that the method does not read."""
  hyper = IGNORED_HYPER[config.algorithm]
  return [flag for flag, name in _HYPER_OF_FLAG.items() if name in hyper]


def notes(config: Config, flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Says which flags were given in vain."""
  return [
    f"note: --{name} has no effect with --algorithm={config.algorithm}"
    for name in ignored(config)
    if flag_values[name].present
  ]


def resolve(config: Config) -> Config:
  """Fills in the defaults that follow from other flags."""
  ramp = 0 if config.sparsity_schedule == "constant" else config.rounds // 2
  return config._replace(
    client_lr_final=(
      config.client_lr / 10 if config.client_lr_final is None else config.client_lr_final
    ),
    sparsity_ramp_rounds=(
      ramp if config.sparsity_ramp_rounds is None else config.sparsity_ramp_rounds
    ),
  )
