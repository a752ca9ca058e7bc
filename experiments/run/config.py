"""The settings of a run: each flag is one field, with its type, default, help and range."""

from typing import Annotated, NamedTuple

from experiments.run import choices
from experiments.run.choices import AUTO, FREE, VALUE, ConfigError
from experiments.run.defaults import (
  default_client_lr,
  default_ramp,
  default_server_lr,
  default_shift_alpha,
  default_shift_seed,
)
from experiments.run.ending import EarlyStopPatience, KeepBest, StopAtTarget
from sparsyfed_jax.algorithms import METHODS, OURS
from sparsyfed_jax.data.readers import READERS
from sparsyfed_jax.fed.method import Choice, Knob, Pattern
from sparsyfed_jax.fed.optimizers import SERVER_OPTIMIZERS
from sparsyfed_jax.fed.sampling import AVAILABILITIES
from sparsyfed_jax.fed.schedules import RATE_SCHEDULES, SPARSITY_SCHEDULES
from sparsyfed_jax.fed.server import CLIENT_WEIGHTS
from sparsyfed_jax.models.norm import Norm

__all__ = ["AUTO", "FREE", "VALUE", "Config", "ConfigError"]


class Config(NamedTuple):
  """The flags of a run, by name, besides those of its method."""

  dataset: Annotated[
    str,
    Knob(
      "digits (scikit-learn's, embedded), npz:PATH (docs/own_data.md lists its arrays),"
      " folder:PATH (of .npy files, larger than memory with --data_placement=streamed), text:PATH"
      " (of characters), tfds:NAME (prepared by tensorflow-datasets), or one of"
      f" {', '.join(f'{name}:PATH' for name in READERS)} (docs/data_formats.md)"
    ),
    VALUE,
  ] = "digits"
  input_range: Annotated[
    tuple[str, ...],
    Knob(
      "LOW,HIGH: the stored values that the model sees as -1 and 1; auto (by the values of the"
      " training set, as docs/own_data.md says), or none (all values as they are)"
    ),
    VALUE,
  ] = (AUTO,)
  model: Annotated[
    str,
    Knob(
      f"one of {', '.join(choices.MODELS)}, or package.module:factory or ./file.py:factory of"
      " your own, a function of the number of outputs"
    ),
  ] = "cnn"
  prunable: Annotated[
    str,
    Pattern(
      "a regular expression, found in the paths of the parameters that are prunable; empty for all"
      " of at least two axes that layers multiply with their input"
    ),
  ] = ""
  norm: Annotated[Norm, Choice("of the ResNets: batch or group", choices.NORMS)] = "batch"
  algorithm: Annotated[
    str,
    Knob(f"one of {', '.join(METHODS)}, or package.module:METHOD or ./file.py:METHOD of your own"),
  ] = OURS
  sparsity: Annotated[
    float,
    Knob("share of the prunable weights that an upload leaves at 0, in [0, 1)", low=0, below=1),
    VALUE,
  ] = 0.95
  sparsity_schedule: Annotated[
    str,
    Choice(
      "how uploads become sparse: constant (the paper's: full sparsity from round 1), cubic or"
      " linear (a ramp from dense over --sparsity_ramp_rounds)",
      tuple(SPARSITY_SCHEDULES),
    ),
  ] = "cubic"
  sparsity_ramp_rounds: Annotated[
    int | None,
    Knob("rounds of the ramp; default: half of --rounds", default=default_ramp),
    VALUE,
  ] = None
  num_clients: Annotated[
    int | None,
    Knob("clients that share the training data; default: 100, or what a natural split has", low=1),
    VALUE,
  ] = None
  clients_per_round: Annotated[
    int, Knob("clients sampled each round, without replacement", low=1)
  ] = 10
  client_sparsities: Annotated[
    tuple[float, ...],
    Knob("comma list: sparsities of weaker clients, in --client_sparsity_shares"),
    VALUE,
  ] = ()
  client_sparsity_shares: Annotated[
    tuple[float, ...],
    Knob("comma list: shares of the clients that have each of --client_sparsities, together 1"),
    VALUE,
  ] = ()
  client_weighting: Annotated[
    str,
    Choice(
      "of clients in the server's mean: size (examples) or uniform",
      tuple(CLIENT_WEIGHTS),
    ),
  ] = "size"
  client_sampling: Annotated[
    str,
    Choice(
      "who is sampled: uniform, or size (in proportion to their examples, which then count twice"
      " unless --client_weighting=uniform)",
      tuple(AVAILABILITIES),
    ),
  ] = "uniform"
  client_dropout: Annotated[
    float,
    Knob("probability that a sampled client vanishes before it sends anything", low=0, below=1),
    VALUE,
  ] = 0.0
  straggler_fraction: Annotated[
    float,
    Knob("probability that a client does only a random part of its local steps", low=0, high=1),
    VALUE,
  ] = 0.0
  rounds: Annotated[
    int, Knob("rounds of the run, over which the client's rate decays", low=1), VALUE
  ] = 100
  local_epochs: Annotated[int, Knob("passes of a client over its examples each round", low=1)] = 5
  batch_size: Annotated[
    int, Knob("examples of a local step; a client's last batch of an epoch may be smaller", low=1)
  ] = 16
  client_lr: Annotated[
    float | None,
    Knob(
      "first rate of the clients; default: 0.5 * (1 - --client_momentum); adamw: 0.01",
      above=0,
      default=default_client_lr,
    ),
    VALUE,
  ] = None
  client_lr_final: Annotated[
    float | None,
    Knob(
      "rate after the last round; default: client_lr / 10",
      above=0,
      default=lambda config: config.client_lr / 10,
    ),
    VALUE,
  ] = None
  client_lr_schedule: Annotated[
    str,
    Choice(f"how the rate gets there; one of {', '.join(RATE_SCHEDULES)}", tuple(RATE_SCHEDULES)),
  ] = "exponential"
  client_optimizer: Annotated[
    str,
    Choice(
      f"one of {', '.join(choices.CLIENT_OPTIMIZERS)}; its state lasts one round",
      choices.CLIENT_OPTIMIZERS,
    ),
  ] = "sgd"
  client_momentum: Annotated[float, Knob("of sgd and nesterov, in [0, 1)", low=0, below=1)] = 0.0
  client_clip_norm: Annotated[
    float, Knob("largest global norm of a step's gradient; 0 does not clip", low=0)
  ] = 0.0
  proximal_mu: Annotated[
    float,
    Knob("coefficient of FedProx's term, which pulls clients to what they received", low=0),
    VALUE,
  ] = 0.0
  weight_decay: Annotated[
    float, Knob("L2 on all trained parameters, in the clients; decoupled with adamw", low=0), VALUE
  ] = 1e-3
  server_optimizer: Annotated[
    str,
    Choice(
      f"on the pseudo-gradient; one of {', '.join(SERVER_OPTIMIZERS)}; fedadagrad,"
      " fedadam and fedyogi are those of Reddi et al. 2021, adagrad, adam and yogi optax's",
      tuple(SERVER_OPTIMIZERS),
    ),
  ] = "sgd"
  server_lr: Annotated[
    float | None,
    Knob(
      "rate of the server; 1 with sgd adopts the clients' mean; default: 1 with sgd and momentum,"
      " 0.01 with the adaptive ones",
      above=0,
      default=default_server_lr,
    ),
    VALUE,
  ] = None
  server_tau: Annotated[
    float,
    Knob(
      "adaptivity of fedadagrad, fedadam and fedyogi (Reddi et al. 2021): the larger, the less"
      " small steps are scaled up",
      above=0,
    ),
    VALUE,
  ] = 1e-3
  partition: Annotated[str | None, choices.PARTITION, VALUE] = None
  dirichlet_alpha: Annotated[
    float,
    Knob("concentration of the Dirichlet splits: 1000 is uniform, 0.1 very skewed", above=0),
    VALUE,
  ] = 1.0
  shards_per_client: Annotated[int, Knob("of --partition=shards", low=1), VALUE] = 2
  power_law_exponent: Annotated[float, Knob("of --partition=power_law", low=0), VALUE] = 1.0
  shift_round: Annotated[
    int | None,
    Knob("round after which the clients' data changes, to see how a method adapts; default: never"),
    VALUE,
  ] = None
  shift_kind: Annotated[str, choices.SHIFT, VALUE] = "resplit"
  shift_dirichlet_alpha: Annotated[
    float | None,
    Knob(
      "--dirichlet_alpha of the data after --shift_round; default: unchanged",
      above=0,
      default=default_shift_alpha,
    ),
    VALUE,
  ] = None
  shift_seed: Annotated[
    int | None,
    Knob(
      "of the data after --shift_round; default: --seed + 1",
      low=0,
      high=2**32 - 1,
      default=default_shift_seed,
    ),
    VALUE,
  ] = None
  eval_every: Annotated[
    int,
    Knob(
      "rounds between two evaluations on the test set, which are also the rounds of one compiled"
      " call",
      low=1,
    ),
  ] = 5
  client_eval: Annotated[
    bool,
    Knob(
      "whether evaluations also take each client's own test examples: those that the data names"
      " (client_test), or else a part of the test set with the class frequencies of the client's"
      " training examples"
    ),
    VALUE,
  ] = False
  target_accuracy: Annotated[
    float,
    Knob("test accuracy to which summary.json counts bytes and rounds, in (0, 1]", above=0, high=1),
    VALUE,
    FREE,
  ] = 0.9
  stop_at_target: StopAtTarget = False
  early_stop_patience: EarlyStopPatience = 0
  keep_best: KeepBest = "none"
  metrics: Annotated[
    bool, Knob("whether bytes, sparsity, regrowth and FLOPs are measured each round")
  ] = True
  mask_metrics_every: Annotated[
    int,
    Knob(
      "rounds between two measurements of masks that cost more: the agreement of the clients of a"
      " round, who are trained once more for it, and the global mask, which is kept in masks/; 0"
      " for none",
      low=0,
    ),
    VALUE,
  ] = 0
  mask_metrics_clients: Annotated[
    int, Knob("how many clients of a round are compared at most, each with each other", low=2)
  ] = 10
  checkpoint_every: Annotated[
    int,
    Knob("rounds between two checkpoints, from which --resume goes on; 0 writes none", low=0),
    VALUE,
    FREE,
  ] = 50
  clients_per_chunk: Annotated[
    str,
    Knob(
      "clients trained side by side (vmap), the rest one chunk after the other; auto: what"
      " measured best for the model and the backend, as far as memory allows"
    ),
    FREE,
  ] = AUTO
  num_devices: Annotated[
    int | None,
    Knob(
      "devices that share the clients of a round, of a CPU up to its cores; default: all there are",
      low=1,
    ),
    FREE,
  ] = None
  data_placement: Annotated[str, choices.PLACEMENT, FREE] = "replicated"
  compute_dtype: Annotated[
    str,
    Choice(
      "of layers: float32, tf32 (float32 with shorter products, on GPUs), or bfloat16;"
      " parameters, norms and updates are float32 always",
      choices.COMPUTE_DTYPES,
    ),
  ] = "float32"
  wire_dtype: Annotated[str, choices.WIRE_DTYPE] = "float32"
  wire_feedback: Annotated[
    bool,
    Knob(
      "whether clients keep what rounding to --wire_dtype=int8 or int4 takes, and add it to what"
      " they send in their next round"
    ),
  ] = False
  wire_codec: Annotated[str, choices.WIRE_CODEC] = "plain"
  coordinator: Annotated[
    str | None,
    Knob(
      "HOST:PORT of the first of several processes, each of which is started with the same flags,"
      " --num_processes and its own --process_id; auto: as SLURM, MPI, Kubernetes or a TPU pod"
      " says"
    ),
    FREE,
  ] = None
  num_processes: Annotated[
    int | None, Knob("how many processes the run has, with --coordinator", low=1), FREE
  ] = None
  process_id: Annotated[int | None, Knob("number of this process, from 0"), FREE] = None
  compilation_cache_dir: Annotated[
    str,
    Knob(
      "where compiled programs are kept for later runs; auto: as jax is configured, or else in"
      " the user's cache directory; empty: nowhere"
    ),
    VALUE,
    FREE,
  ] = AUTO
  seed: Annotated[
    int,
    Knob(
      "of everything random: split, partition, initialisation, sampling, shuffling",
      low=0,
      high=2**32 - 1,
    ),
    VALUE,
  ] = 0
  output_dir: Annotated[
    str | None,
    Knob("a new or empty directory; default: runs/<time>-<algorithm>-<dataset>"),
    VALUE,
    FREE,
  ] = None
  trackers: Annotated[
    tuple[str, ...],
    Knob(
      "comma list of tensorboard and wandb, which get the rows of metrics besides the files; each"
      " needs the extra of its name"
    ),
    VALUE,
    FREE,
  ] = ()
  resume: Annotated[
    bool,
    Knob(
      "goes on with the run in --output_dir from its last checkpoint; the other flags must be"
      " those it was started with"
    ),
    VALUE,
    FREE,
  ] = False
  discard_rounds: Annotated[
    bool,
    Knob(
      "with --resume, where rows or checkpoints are damaged or missing: goes on from the newest"
      " checkpoint whose rows are all there, or from round 1; what was there is kept, such as in"
      " metrics.discarded-1.jsonl"
    ),
    VALUE,
    FREE,
  ] = False
