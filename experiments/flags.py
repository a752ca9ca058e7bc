"""The flags of a run, their defaults, and what is refused before anything is compiled."""

import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from absl import flags

from experiments import flag_files
from sparsyfed_jax.algorithms import ALGORITHMS, HETEROGENEOUS, READS_HYPER
from sparsyfed_jax.algorithms.flash import AGGREGATIONS
from sparsyfed_jax.algorithms.flash import FORMS as FLASH_FORMS
from sparsyfed_jax.algorithms.sparsyfed import ACTIVATION_THRESHOLDS, REPARAMETERISATIONS, UPLOADS
from sparsyfed_jax.algorithms.static import MASKS
from sparsyfed_jax.algorithms.zerofl import FORMS as ZEROFL_FORMS
from sparsyfed_jax.algorithms.zerofl import UPLINKS
from sparsyfed_jax.data.shift import SHIFTS
from sparsyfed_jax.data.sources import InputRange
from sparsyfed_jax.fed.devices import PLACEMENTS
from sparsyfed_jax.fed.optimizers import FEDOPT, SERVER_OPTIMIZERS
from sparsyfed_jax.fed.sampling import AVAILABILITIES
from sparsyfed_jax.fed.schedules import RATE_SCHEDULES, SPARSITY_SCHEDULES
from sparsyfed_jax.fed.server import CLIENT_WEIGHTS
from sparsyfed_jax.io.trackers import TrackerError, check_installed
from sparsyfed_jax.models.norm import Norm

MODELS = ("mlp", "cnn", "resnet18", "speech_resnet18", "vit")
NORMS = ("batch", "group")
PARTITIONS = (
  *("dirichlet", "dirichlet_symmetric", "dirichlet_per_class"),
  *("iid", "shards", "power_law", "natural"),
)
CLIENT_OPTIMIZERS = ("sgd", "nesterov", "adamw")
COMPUTE_DTYPES = ("float32", "tf32", "bfloat16")
WIRE_DTYPES = ("float32", "bfloat16", "float16")

_FLAGS = flags.FLAGS
# Flags of numbers that not every method reads, and where they go.
_HYPER_OF_FLAG = {
  "sparsity": "density",
  "sparsity_schedule": "ramp_rounds",
  "sparsity_ramp_rounds": "ramp_rounds",
  "beta": "beta",
  "activation_floor": "activation_floor",
  "zerofl_mask_ratio": "zerofl_mask_ratio",
  "flash_warmup_rounds": "flash_warmup_rounds",
  "flash_warmup_epochs": "flash_warmup_epochs",
  "flash_update_every": "flash_update_every",
  "flash_drop_rate": "flash_drop_rate",
  "feddst_update_every": "feddst_update_every",
  "feddst_update_until": "feddst_update_until",
  "feddst_drop_rate": "feddst_drop_rate",
}
# Flags that choose the form of a method: the method, the field of its Options, what is known.
_OPTION_OF_FLAG: dict[str, tuple[str, str, tuple[str, ...]]] = {
  "activation_threshold": ("sparsyfed", "activation_threshold", ACTIVATION_THRESHOLDS),
  "reparam_exclude": ("sparsyfed", "reparam_exclude", ()),
  "reparameterisation": ("sparsyfed", "reparameterisation", REPARAMETERISATIONS),
  "upload": ("sparsyfed", "upload", UPLOADS),
  "zerofl_uplink": ("zerofl", "uplink", UPLINKS),
  "zerofl_form": ("zerofl", "form", ZEROFL_FORMS),
  "zerofl_exclude": ("zerofl", "exclude", ()),
  "flash_form": ("flash", "form", FLASH_FORMS),
  "flash_aggregation": ("flash", "aggregation", AGGREGATIONS),
  "static_mask": ("static", "mask", MASKS),
}
AUTO: Literal["auto"] = "auto"
# Flags that change no result, so that a resumed run may change them.
WITHOUT_EFFECT = (
  "output_dir",
  "resume",
  "discard_rounds",
  "checkpoint_every",
  "clients_per_chunk",
  "num_devices",
  "data_placement",
  "coordinator",
  "num_processes",
  "process_id",
  "compilation_cache_dir",
  "trackers",
  "target_accuracy",
)


class ConfigError(ValueError):
  """A flag that cannot be obeyed; the one-line message names it, its value and what is right."""


class Config(NamedTuple):
  """The flags of a run, by name."""

  dataset: str
  input_range: tuple[str, ...]
  model: str
  norm: Norm
  algorithm: str
  sparsity: float
  sparsity_schedule: str
  sparsity_ramp_rounds: int | None
  beta: float
  activation_floor: float
  activation_threshold: str
  reparam_exclude: str
  reparameterisation: str
  upload: str
  zerofl_uplink: str
  zerofl_form: str
  zerofl_exclude: str
  zerofl_mask_ratio: float
  flash_form: str
  flash_aggregation: str
  flash_warmup_rounds: int
  flash_warmup_epochs: int
  flash_update_every: int
  flash_drop_rate: float
  feddst_update_every: int
  feddst_update_until: int | None
  feddst_drop_rate: float
  static_mask: str
  num_clients: int | None
  clients_per_round: int
  client_sparsities: tuple[float, ...]
  client_sparsity_shares: tuple[float, ...]
  client_weighting: str
  client_sampling: str
  client_dropout: float
  straggler_fraction: float
  rounds: int
  local_epochs: int
  batch_size: int
  client_lr: float | None
  client_lr_final: float | None
  client_lr_schedule: str
  client_optimizer: str
  client_momentum: float
  client_clip_norm: float
  proximal_mu: float
  weight_decay: float
  server_optimizer: str
  server_lr: float | None
  server_tau: float
  partition: str
  dirichlet_alpha: float
  shards_per_client: int
  power_law_exponent: float
  shift_round: int | None
  shift_kind: str
  shift_dirichlet_alpha: float | None
  shift_seed: int | None
  eval_every: int
  client_eval: bool
  target_accuracy: float
  metrics: bool
  mask_metrics_every: int
  mask_metrics_clients: int
  checkpoint_every: int
  clients_per_chunk: str
  num_devices: int | None
  data_placement: str
  compute_dtype: str
  wire_dtype: str
  coordinator: str | None
  num_processes: int | None
  process_id: int | None
  compilation_cache_dir: str
  seed: int
  output_dir: str | None
  trackers: tuple[str, ...]
  resume: bool
  discard_rounds: bool


DEFAULTS = Config(
  dataset="digits",
  input_range=(AUTO,),
  model="cnn",
  norm="batch",
  algorithm="sparsyfed",
  sparsity=0.95,
  sparsity_schedule="cubic",
  sparsity_ramp_rounds=None,
  beta=1.25,
  activation_floor=0.0,
  activation_threshold="batch",
  reparam_exclude="",
  reparameterisation="powerprop",
  upload="weights",
  zerofl_uplink="weights",
  zerofl_form="paper",
  zerofl_exclude="",
  zerofl_mask_ratio=0.0,
  flash_form="spdst",
  flash_aggregation="mean",
  flash_warmup_rounds=1,
  flash_warmup_epochs=10,
  flash_update_every=1,
  flash_drop_rate=0.25,
  feddst_update_every=10,
  feddst_update_until=None,
  feddst_drop_rate=0.5,
  static_mask="random",
  num_clients=None,
  clients_per_round=10,
  client_sparsities=(),
  client_sparsity_shares=(),
  client_weighting="size",
  client_sampling="uniform",
  client_dropout=0.0,
  straggler_fraction=0.0,
  rounds=100,
  local_epochs=5,
  batch_size=16,
  client_lr=None,
  client_lr_final=None,
  client_lr_schedule="exponential",
  client_optimizer="sgd",
  client_momentum=0.0,
  client_clip_norm=0.0,
  proximal_mu=0.0,
  weight_decay=1e-3,
  server_optimizer="sgd",
  server_lr=None,
  server_tau=1e-3,
  partition="dirichlet",
  dirichlet_alpha=1.0,
  shards_per_client=2,
  power_law_exponent=1.0,
  shift_round=None,
  shift_kind="resplit",
  shift_dirichlet_alpha=None,
  shift_seed=None,
  eval_every=5,
  client_eval=False,
  target_accuracy=0.9,
  metrics=True,
  mask_metrics_every=0,
  mask_metrics_clients=10,
  checkpoint_every=50,
  clients_per_chunk=AUTO,
  num_devices=None,
  data_placement="replicated",
  compute_dtype="float32",
  wire_dtype="float32",
  coordinator=None,
  num_processes=None,
  process_id=None,
  compilation_cache_dir=AUTO,
  seed=0,
  output_dir=None,
  trackers=(),
  resume=False,
  discard_rounds=False,
)

_HELP = dict(
  dataset="digits (scikit-learn's, embedded), npz:PATH (see the README for its arrays), or"
  " tfds:NAME (prepared by tensorflow-datasets)",
  input_range="LOW,HIGH: the stored values that the model sees as -1 and 1; auto (by the values of"
  " the training set, see the README), or none (all values as they are)",
  model=f"one of {', '.join(MODELS)}",
  norm="of the ResNets: batch or group",
  algorithm=f"one of {', '.join(sorted(ALGORITHMS))}",
  sparsity="share of the prunable weights that a client's upload leaves at 0, in [0, 1)",
  sparsity_schedule="how uploads become sparse: constant (the paper's: full sparsity from round 1),"
  " cubic or linear (a ramp from dense over --sparsity_ramp_rounds)",
  sparsity_ramp_rounds="rounds of the ramp; default: half of --rounds",
  beta="exponent of powerpropagation, at least 1; 1 turns it off",
  activation_floor="least share of activations kept in the backward pass, in [0, 1]",
  activation_threshold="of sparsyfed: batch (exact, anew in every batch) or first_batch"
  " (convolutions reuse that of the client's first batch of the round, as the release does)",
  reparam_exclude="of sparsyfed: a regular expression; layers whose names it finds (such as"
  " shortcut) are plain but take part in the ranking of the upload; empty for none",
  reparameterisation="of sparsyfed: powerprop (the exponent is --beta) or spectral (each layer has"
  " its own)",
  upload="of sparsyfed: weights (the largest) or changes (the largest; they keep no mask,"
  " and the server's model becomes dense)",
  zerofl_uplink="what zerofl's clients send: the largest weights, masked_changes (the changes of"
  " the largest weights) or changes (the largest); of changes the server's model stays dense",
  zerofl_form="paper, or comparison: as SparsyFed's authors ran it",
  zerofl_exclude="of zerofl: a regular expression; layers whose names it finds are plain, as the"
  " first layer always is; empty for none",
  zerofl_mask_ratio="by how much more zerofl's clients send than they compute with; the paper"
  " takes 0, 0.1 and 0.2",
  flash_form="of flash: spdst, jmwst, pdst, nst (the paper's), or magnitude (as SparsyFed's authors"
  " ran it)",
  flash_aggregation="of flash: mean over all clients, or masked_mean over those that have a weight",
  flash_warmup_rounds="rounds in which flash's clients look for layer densities (spdst, jmwst)",
  flash_warmup_epochs="local epochs of those rounds",
  flash_update_every="rounds between two masks (jmwst)",
  flash_drop_rate="share of its weights that a flash client exchanges, at the start of a fall to 0"
  " over the local epochs",
  feddst_update_every="rounds between two readjustments of feddst",
  feddst_update_until="round from which on feddst's masks stay; default: half of --rounds",
  feddst_drop_rate="share of the weights that feddst exchanges at first",
  static_mask="of static: random, erk (random, small layers denser) or saliency (SNIP)",
  num_clients="clients that share the training data; default: 100, or what a natural split has",
  clients_per_round="clients sampled each round, without replacement",
  client_sparsities="comma list: sparsities of weaker clients, each at least --sparsity; with"
  " --client_sparsity_shares",
  client_sparsity_shares="comma list: shares of the clients that have each of --client_sparsities,"
  " together 1",
  client_weighting="of clients in the server's mean: size (examples, as FedAvg) or uniform",
  client_sampling="who is sampled: uniform, or size (in proportion to the examples)",
  client_dropout="probability that a sampled client vanishes before it sends anything",
  straggler_fraction="probability that a client gets only a random part of its local steps done",
  rounds="rounds of the run, over which the client's rate decays",
  local_epochs="passes of a client over its examples each round",
  batch_size="examples of a local step; a client's last batch of an epoch may be smaller",
  client_lr="rate of the clients at the start; default: 0.5 * (1 - --client_momentum), or 0.01"
  " with adamw",
  client_lr_final="rate after the last round; default: client_lr / 10",
  client_lr_schedule=f"how the rate gets there; one of {', '.join(RATE_SCHEDULES)}",
  client_optimizer=f"one of {', '.join(CLIENT_OPTIMIZERS)}; its state lasts one round",
  client_momentum="of sgd and nesterov, in [0, 1)",
  client_clip_norm="largest global norm of a step's gradient; 0 does not clip",
  proximal_mu="coefficient of FedProx's term, which pulls clients towards what they received",
  weight_decay="L2 on all trained parameters, in the clients; decoupled with adamw",
  server_optimizer=f"on the pseudo-gradient; one of {', '.join(SERVER_OPTIMIZERS)}; fedadagrad,"
  " fedadam and fedyogi are those of Reddi et al. 2021, adagrad, adam and yogi optax's",
  server_lr="rate of the server; 1 with sgd adopts the clients' mean; default: 1 with sgd and"
  " momentum, 0.01 with the adaptive ones",
  server_tau="adaptivity of fedadagrad, fedadam and fedyogi (Reddi et al. 2021): the larger, the"
  " less small steps are scaled up",
  partition="how the training data is dealt to the clients: dirichlet (equal sizes, class"
  " frequencies of each client ~ Dirichlet(--dirichlet_alpha * classes * frequency of the class)),"
  " dirichlet_symmetric (~ Dirichlet(--dirichlet_alpha), as in the paper: the same where classes"
  " are equally frequent; where not, some clients get nothing but the frequent ones),"
  " dirichlet_per_class (sizes vary too), iid, shards (--shards_per_client of the sorted data),"
  " power_law (sizes ~ rank^-exponent), natural (the file's own clients)",
  dirichlet_alpha="concentration of the Dirichlet splits: 1000 is uniform, 0.1 very skewed",
  shards_per_client="of --partition=shards",
  power_law_exponent="of --partition=power_law",
  shift_round="round after which the clients' data changes, to see how a method adapts; default:"
  " never",
  shift_kind="what changes then: resplit (all examples are dealt anew), clients (other clients with"
  " the other half of the examples come in the place of those before), or labels (classes that were"
  " frequent become rare, and rare ones frequent)",
  shift_dirichlet_alpha="--dirichlet_alpha of the data after --shift_round; default: unchanged",
  shift_seed="of the data after --shift_round; default: --seed + 1",
  eval_every="rounds between two evaluations on the test set, which are also the rounds of one"
  " compiled call",
  client_eval="whether evaluations also take each client's own test examples: those that the data"
  " names (client_test), or else a part of the test set with the class frequencies of the client's"
  " training examples",
  target_accuracy="test accuracy to which summary.json counts bytes and rounds, in (0, 1]",
  metrics="whether bytes, sparsity, regrowth and FLOPs are measured each round",
  mask_metrics_every="rounds between two measurements of masks that cost more: the agreement of the"
  " clients of a round, who are trained once more for it, and the global mask, which is kept in"
  " masks/; 0 for none",
  mask_metrics_clients="how many clients of a round are compared at most, each with each other",
  checkpoint_every="rounds between two checkpoints, from which --resume goes on; 0 writes none",
  clients_per_chunk="clients trained side by side (vmap), the rest one chunk after the other;"
  " auto: what measured best for the model and the backend, as far as memory allows",
  num_devices="devices that share the clients of a round; default: all there are",
  data_placement="where training examples are: replicated (on every device), sharded (each device"
  " has some clients, and trains them), or streamed (on the host, which sends those of each round"
  " ahead)",
  compute_dtype="of layers: float32, tf32 (float32 with shorter products, on GPUs), or bfloat16;"
  " parameters, norms and updates are float32 always",
  wire_dtype="of values on the wire, to which models are rounded in both directions: float32,"
  " bfloat16 or float16",
  coordinator="HOST:PORT of the first of several processes, each of which is started with the same"
  " flags, --num_processes and its own --process_id; auto: as SLURM, MPI, Kubernetes or a TPU pod"
  " says",
  num_processes="how many processes the run has, with --coordinator",
  process_id="number of this process, from 0",
  compilation_cache_dir="where compiled programs are kept for later runs; auto: as jax is"
  " configured, or else in the user's cache directory; empty: nowhere",
  seed="of everything random: split, partition, initialisation, sampling, shuffling",
  output_dir="a new or empty directory; default: runs/<time>-<algorithm>-<dataset>",
  trackers="comma list of tensorboard and wandb, which get the rows of metrics besides the files;"
  " each needs the extra of its name",
  resume="goes on with the run in --output_dir from its last checkpoint; the other flags must be"
  " those it was started with",
  discard_rounds="with --resume, where rows or checkpoints are damaged or missing: goes on from the"
  " newest checkpoint whose rows are all there, or from round 1; what was there is kept, such as in"
  " metrics.discarded-1.jsonl",
)


def define(flag_values: flags.FlagValues = _FLAGS) -> None:
  """Defines the flags of a run in a table of flags, by default the program's."""
  types = Config.__annotations__
  definers: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    Norm: flags.DEFINE_string,
    str | None: flags.DEFINE_string,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
    tuple[float, ...]: flags.DEFINE_list,
    tuple[str, ...]: flags.DEFINE_list,
    bool: flags.DEFINE_boolean,
  }
  for name, default in DEFAULTS._asdict().items():
    shown = list(default) if isinstance(default, tuple) else default  # as absl's lists are
    definers[types[name]](name, shown, _HELP[name], flag_values=flag_values)
  flag_files.define(flag_values)


def parse(argv: list[str], flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Parses flags for `absl.app.run`; a mistake is one line on stderr and exit code 2."""
  print_anywhere()
  try:
    return parse_or_raise(argv, flag_values)
  except flags.Error as error:
    fail(error)


def parse_or_raise(argv: list[str], flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Parses flags; absl's Error, of one line, for a mistake."""
  try:
    rest = flag_values([*argv[:1], *flag_files.expand(argv[1:])])
  except flags.Error as error:
    raise flags.Error(str(error).removeprefix("ERROR:: ")) from error
  if len(rest) > 1:
    raise flags.Error(f"{rest[1]!r} is not a flag; flags are written --name=value")
  return rest


def print_anywhere() -> None:
  """Lets stdout write `?` for a letter that its encoding lacks, where it would end the program."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="replace")


def fail(error: Exception, code: int = 2) -> NoReturn:
  """Ends the process with a one-line message and an exit code."""
  print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
  sys.exit(code)


def read(flag_values: flags.FlagValues = _FLAGS) -> Config:
  """Collects parsed flags, checked as far as flags alone can tell.

  Raises:
    ConfigError: a value is out of range, or two contradict each other.
  """
  config = collect(flag_values)
  check(config)
  return config


def collect(flag_values: flags.FlagValues) -> Config:
  """Collects parsed flags, which may be out of range; raises ConfigError of what is no number."""
  values: dict[str, Any] = {name: flag_values[name].value for name in Config._fields}
  for name in ("client_sparsities", "client_sparsity_shares"):
    values[name] = _numbers(name, values[name])
  for name in ("trackers", "input_range"):
    values[name] = tuple(values[name])
  return Config(**values)


def input_range(config: Config) -> InputRange:
  """Reads --input_range as `sources.load` takes it."""
  if config.input_range == (AUTO,):
    return AUTO
  if config.input_range == ("none",):
    return None
  low, high = _numbers("input_range", config.input_range)
  return low, high


def _numbers(name: str, listed: Sequence[str | float]) -> tuple[float, ...]:
  try:
    return tuple(float(entry) for entry in listed)
  except ValueError:
    joined = ",".join(map(str, listed))
    raise ConfigError(f"--{name}={joined}: must be numbers separated by commas") from None


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

  _check_input_range(config)
  require_one_of("model", MODELS)
  require_one_of("algorithm", tuple(sorted(ALGORITHMS)))
  require_one_of("sparsity_schedule", tuple(SPARSITY_SCHEDULES))
  require_one_of("server_optimizer", tuple(SERVER_OPTIMIZERS))
  require_one_of("partition", PARTITIONS)
  require_one_of("norm", NORMS)
  require_one_of("client_optimizer", CLIENT_OPTIMIZERS)
  require_one_of("client_lr_schedule", tuple(RATE_SCHEDULES))
  require_one_of("client_weighting", tuple(CLIENT_WEIGHTS))
  require_one_of("client_sampling", tuple(AVAILABILITIES))
  require_one_of("data_placement", PLACEMENTS)
  require_one_of("compute_dtype", COMPUTE_DTYPES)
  require_one_of("wire_dtype", WIRE_DTYPES)
  require_one_of("shift_kind", tuple(SHIFTS))
  for name, (_, _, known) in _OPTION_OF_FLAG.items():
    if known:
      require_one_of(name, known)
    else:
      require(_is_pattern(getattr(config, name)), name, "a regular expression")
  require(0 <= config.sparsity < 1, "sparsity", "at least 0 and below 1")
  require(1 <= config.beta < math.inf, "beta", "at least 1 and finite")
  require(0 <= config.activation_floor <= 1, "activation_floor", "between 0 and 1")
  for name in ("clients_per_round", "rounds", "local_epochs", "batch_size", "eval_every"):
    require(getattr(config, name) >= 1, name, "at least 1")
  for name in ("shards_per_client", "flash_warmup_rounds", "flash_warmup_epochs"):
    require(getattr(config, name) >= 1, name, "at least 1")
  for name in ("flash_update_every", "feddst_update_every"):
    require(getattr(config, name) >= 1, name, "at least 1")
  require(0 <= config.client_dropout < 1, "client_dropout", "at least 0 and below 1")
  for name in ("flash_drop_rate", "feddst_drop_rate", "straggler_fraction"):
    require(0 <= getattr(config, name) <= 1, name, "between 0 and 1")
  require(
    0 <= config.zerofl_mask_ratio <= config.sparsity or config.algorithm != "zerofl",
    "zerofl_mask_ratio",
    f"between 0 and --sparsity={config.sparsity}, or clients would send more than everything",
  )
  require(config.checkpoint_every >= 0, "checkpoint_every", "at least 0")
  require(
    not config.resume or bool(config.output_dir),
    "resume",
    "given with --output_dir, the directory of the run to go on with",
  )
  require(config.resume or not config.discard_rounds, "discard_rounds", "given with --resume")
  require(0 <= config.client_momentum < 1, "client_momentum", "at least 0 and below 1")
  require(
    config.client_momentum == 0 or config.client_optimizer != "adamw",
    "client_momentum",
    "left out with --client_optimizer=adamw, which has its own",
  )
  require(
    config.client_momentum > 0 or config.client_optimizer != "nesterov",
    "client_momentum",
    "above 0 with --client_optimizer=nesterov",
  )
  for name in ("client_lr", "client_lr_final", "server_lr", "server_tau", "dirichlet_alpha"):
    value = getattr(config, name)
    require(value is None or 0 < value < math.inf, name, "positive and finite")
  for name in ("weight_decay", "power_law_exponent", "client_clip_norm", "proximal_mu"):
    require(0 <= getattr(config, name) < math.inf, name, "at least 0 and finite")
  require(0 <= config.seed < 2**32, "seed", "between 0 and 2^32 - 1")
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
  if config.num_devices is not None:
    require(config.num_devices >= 1, "num_devices", "at least 1")
  _check_processes(config, require)
  if config.feddst_update_until is not None:
    require(config.feddst_update_until >= 0, "feddst_update_until", "at least 0")
  _check_client_sparsities(config, require)
  _check_shift(config, require)
  _check_measures(config, require)
  chunk = config.clients_per_chunk
  require(
    chunk == AUTO or (chunk.isascii() and chunk.isdigit() and int(chunk) >= 1),
    "clients_per_chunk",
    "auto or a whole number of at least 1",
  )


def _check_input_range(config: Config) -> None:
  if config.input_range in ((AUTO,), ("none",)):
    return
  joined = ",".join(config.input_range)
  refusal = ConfigError(f"--input_range={joined}: must be LOW,HIGH with LOW < HIGH, auto or none")
  try:
    low, high = map(float, config.input_range)
  except ValueError:
    raise refusal from None
  if not -math.inf < low < high < math.inf:
    raise refusal


def _check_processes(config: Config, require: Callable[[bool, str, str], None]) -> None:
  is_listed = config.coordinator not in (None, AUTO)
  for name in ("num_processes", "process_id"):
    is_given = getattr(config, name) is not None
    require(is_given == is_listed, name, "given if and only if --coordinator=HOST:PORT is")
  if config.coordinator is None:
    return
  require(config.num_devices is None, "num_devices", "left out with --coordinator: all take part")
  if config.num_processes is None or config.process_id is None:
    return
  host, _, port = str(config.coordinator).rpartition(":")
  require(bool(host) and port.isascii() and port.isdigit(), "coordinator", "HOST:PORT or auto")
  require(config.num_processes >= 1, "num_processes", "at least 1")
  last = config.num_processes - 1
  require(0 <= config.process_id <= last, "process_id", f"between 0 and {last}")


def _check_shift(config: Config, require: Callable[[bool, str, str], None]) -> None:
  if config.shift_round is None:
    for name in ("shift_dirichlet_alpha", "shift_seed"):
      require(getattr(config, name) is None, name, "left out without --shift_round")
    return
  require(
    1 <= config.shift_round < config.rounds,
    "shift_round",
    f"at least 1 and below --rounds={config.rounds}",
  )
  require(
    config.partition != "natural",
    "shift_round",
    "left out with --partition=natural, whose clients are as they are",
  )
  if config.shift_dirichlet_alpha is not None:
    is_finite = 0 < config.shift_dirichlet_alpha < math.inf
    require(is_finite, "shift_dirichlet_alpha", "positive and finite")
    require(
      config.partition.startswith("dirichlet"),
      "shift_dirichlet_alpha",
      f"left out with --partition={config.partition}",
    )
  if config.shift_seed is not None:
    require(0 <= config.shift_seed < 2**32, "shift_seed", "between 0 and 2^32 - 1")


def _check_measures(config: Config, require: Callable[[bool, str, str], None]) -> None:
  require(0 < config.target_accuracy <= 1, "target_accuracy", "above 0 and at most 1")
  require(config.mask_metrics_every >= 0, "mask_metrics_every", "at least 0")
  require(config.mask_metrics_clients >= 2, "mask_metrics_clients", "at least 2")
  if config.mask_metrics_every:
    require(
      config.data_placement == "replicated",
      "mask_metrics_every",
      f"0 with --data_placement={config.data_placement}: one device trains all that are compared",
    )
  try:
    check_installed(config.trackers)
  except TrackerError as error:
    raise ConfigError(str(error)) from error


def _is_pattern(text: str) -> bool:
  try:
    re.compile(text)
  except re.error:
    return False
  return True


def _check_client_sparsities(config: Config, require: Callable[[bool, str, str], None]) -> None:
  levels, shares = config.client_sparsities, config.client_sparsity_shares
  if not levels and not shares:
    return
  require(
    config.algorithm in HETEROGENEOUS,
    "client_sparsities",
    f"left out with --algorithm={config.algorithm}, whose clients all have one sparsity; one of"
    f" {', '.join(HETEROGENEOUS)} can",
  )
  require(
    all(config.sparsity <= level < 1 for level in levels),
    "client_sparsities",
    f"at least --sparsity={config.sparsity} and below 1",
  )
  require(
    len(shares) == len(levels),
    "client_sparsity_shares",
    f"as many as --client_sparsities, which are {len(levels)}",
  )
  require(
    all(share > 0 for share in shares) and math.isclose(sum(shares), 1, abs_tol=1e-6),
    "client_sparsity_shares",
    "positive and together 1",
  )


def options(config: Config) -> dict[str, str]:
  """Collects the fields of the chosen method's Options."""
  return {
    field: getattr(config, flag)
    for flag, (method, field, _) in _OPTION_OF_FLAG.items()
    if method == config.algorithm
  }


def ignored(config: Config) -> list[str]:
  """Names the flags that neither the method nor the server's optimizer reads."""
  reads = READS_HYPER[config.algorithm]
  numbers = [flag for flag, name in _HYPER_OF_FLAG.items() if name not in reads]
  forms = [flag for flag, (method, _, _) in _OPTION_OF_FLAG.items() if method != config.algorithm]
  return numbers + forms + ([] if config.server_optimizer in FEDOPT else ["server_tau"])


def notes(config: Config, flag_values: flags.FlagValues = _FLAGS) -> list[str]:
  """Says which flags were given in vain."""
  # A flag that bears the name of another method says so itself; presets set some of those.
  prefixes = tuple(f"{name}_" for name in ALGORITHMS)
  vain = [
    f"--{name}"
    for name in ignored(config)
    if flag_values[name].present and not name.startswith(prefixes)
  ]
  said = []
  if "--server_tau" in vain:
    vain.remove("--server_tau")
    said.append(f"note: no effect with --server_optimizer={config.server_optimizer}: --server_tau")
  if vain:
    said.append(f"note: no effect with --algorithm={config.algorithm}: {', '.join(vain)}")
  return said


# Flags whose defaults follow from others, in `resolve`.
DERIVED = (
  "client_lr",
  "server_lr",
  "client_lr_final",
  "sparsity_ramp_rounds",
  "feddst_update_until",
  "shift_dirichlet_alpha",
  "shift_seed",
)


def folder(path: str) -> str:
  """Resolves `~`, which a shell leaves alone behind the `=` of a flag."""
  return os.path.expanduser(path)


def default_client_lr(config: Config) -> float:
  """Chooses the clients' first rate for their optimizer; of SGD one that suits its momentum."""
  if config.client_optimizer == "adamw":
    return 0.01
  return round(0.5 * (1 - config.client_momentum), 9)


def default_server_lr(config: Config) -> float:
  """Chooses the server's rate: adaptive optimizers move every weight by about so much a round."""
  return 1.0 if config.server_optimizer in ("sgd", "momentum") else 0.01


def resolve(config: Config) -> Config:
  """Fills in the defaults that follow from other flags."""
  ramp = 0 if config.sparsity_schedule == "constant" else config.rounds // 2
  if config.shift_round is not None:
    alpha, seed = config.shift_dirichlet_alpha, config.shift_seed
    config = config._replace(
      shift_dirichlet_alpha=config.dirichlet_alpha if alpha is None else alpha,
      shift_seed=(config.seed + 1) % 2**32 if seed is None else seed,
    )
  client_lr = default_client_lr(config) if config.client_lr is None else config.client_lr
  server_lr = default_server_lr(config) if config.server_lr is None else config.server_lr
  return config._replace(
    output_dir=folder(config.output_dir) if config.output_dir else None,
    client_lr=client_lr,
    server_lr=server_lr,
    client_lr_final=client_lr / 10 if config.client_lr_final is None else config.client_lr_final,
    sparsity_ramp_rounds=(
      ramp if config.sparsity_ramp_rounds is None else config.sparsity_ramp_rounds
    ),
    feddst_update_until=(
      config.rounds // 2 if config.feddst_update_until is None else config.feddst_update_until
    ),
  )
