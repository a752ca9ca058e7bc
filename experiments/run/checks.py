"""What is refused of flags before anything is compiled."""

import importlib.util
import math
from collections.abc import Callable

from experiments.run.choices import FILE, MODELS, PARTITIONS
from experiments.run.config import AUTO, Config, ConfigError
from experiments.run.ending import NOTHING
from experiments.run.learning import is_text, judgement_of, learning_of, reader_of, task_of
from experiments.run.models import check_model, is_strange
from experiments.run.settings import all_flags, completed, method_of, own_hyper
from experiments.run.starting import starting_of
from experiments.run.systems import check_systems, systems_of
from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.method import Method, refusal
from sparsyfed_jax.fed.tasks import TASKS
from sparsyfed_jax.io.trackers import TrackerError, check_installed


def check(config: Config) -> None:
  """Checks flags against their ranges and each other.

  Raises:
    ConfigError: naming the first flag that cannot be obeyed.
  """

  def require(is_met: bool, name: str, right: str) -> None:
    if not is_met:
      raise ConfigError(f"--{name}={getattr(config, name)}: must be {right}")

  known = all_flags(config)  # refuses a stranger's method that cannot be imported
  try:
    method = method_of(config)
  except ValueError as error:
    raise ConfigError(f"--algorithm={error}") from error
  _check_input_range(config)
  require(
    config.model in MODELS or is_strange(config),
    "model",
    f"one of {', '.join(MODELS)}, or package.module:factory or ./file.py:factory of your own",
  )
  check_model(config)
  for name, flag in known.items():
    right = refusal(flag.rule, getattr(config, name))
    require(not right, name, right)
  _check_partition(config, require)
  _check_method(completed(config))
  _check_task(config, require)
  _check_starting(config, require)
  check_systems(config, require)
  require(
    not config.resume or bool(config.output_dir),
    "resume",
    "given with --output_dir, the directory of the run to go on with",
  )
  require(config.resume or not config.discard_rounds, "discard_rounds", "given with --resume")
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
  _check_suited(config, method, require)
  if config.num_clients is not None:
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
  _check_processes(config, require)
  _check_client_sparsities(config, require)
  _check_shift(config, require)
  _check_measures(config, require)
  chunk = config.clients_per_chunk
  require(
    chunk == AUTO or (chunk.isascii() and chunk.isdigit() and int(chunk) >= 1),
    "clients_per_chunk",
    "auto or a whole number of at least 1",
  )


def _check_suited(
  config: Config, method: Method, require: Callable[[bool, str, str], None]
) -> None:
  """Checks what not every method can be combined with."""
  if method.needs_plain_sgd:
    right = f"left out with --algorithm={config.algorithm}, whose clients need plain SGD"
    require(config.client_optimizer == "sgd", "client_optimizer", right)
    require(config.client_momentum == 0, "client_momentum", right)
  right = f"left out with --algorithm={config.algorithm}, whose clients differ in what they compute"
  is_timed = systems_of(config).device_profiles is not None
  require(method.are_alike or not is_timed, "device_profiles", right)


def _check_partition(config: Config, require: Callable[[bool, str, str], None]) -> None:
  chosen = config.partition
  require(
    chosen in (None, *PARTITIONS) or (chosen.startswith(FILE) and chosen != FILE),
    "partition",
    f"one of {', '.join(PARTITIONS)}, or file:CLIENTS.csv",
  )


def _check_method(config: Config) -> None:
  """Checks the numbers of the method, with those filled in that follow from other flags."""
  method = method_of(config)
  settings = {setting.field: setting for setting in method.settings()}
  wrong = [(field, refusal(s.rule, getattr(config, s.name))) for field, s in settings.items()]
  wrong.append(method.check(own_hyper(config), config.sparsity) or ("", ""))
  for field, right in wrong:
    if right:
      name = settings[field].name
      raise ConfigError(f"--{name}={getattr(config, name)}: must be {right}")


def remark_of(config: Config) -> str:
  """Says which number of the method is allowed and yet rarely meant; "" if none is.

  Args:
    config: resolved flags.
  """
  method = method_of(config)
  field, meaning = method.remark(own_hyper(config), config.rounds) or ("", "")
  names = [setting.name for setting in method.settings() if setting.field == field]
  return "".join(f"--{name}={getattr(config, name)}: {meaning}" for name in names)


def _check_starting(config: Config, require: Callable[[bool, str, str], None]) -> None:
  chosen = starting_of(config)
  for name in ("init_exclude", "freeze"):
    is_needless = chosen.init_from or not getattr(chosen, name)
    require(bool(is_needless), name, "given with --init_from, whose weights it is about")


def _check_task(config: Config, require: Callable[[bool, str, str], None]) -> None:
  own, task, reader = learning_of(config), task_of(config), reader_of(config)
  require(task in TASKS, "task", f"one of {', '.join(TASKS)}")
  data = f"with --dataset={config.dataset}"
  if is_text(config):
    require(task == "next_token", "task", f"next_token {data}")
    require(config.input_range == (AUTO,), "input_range", f"left out {data}: tokens have no scale")
  elif config.dataset.startswith("folder:") or (reader and reader.has_text):
    is_plain = config.input_range == (AUTO,) or task != "next_token"
    require(is_plain, "input_range", f"left out {data}: tokens have no scale")
  elif reader or config.dataset.startswith("npz:"):
    require(task != "next_token", "task", f"another {data}; next_token needs --dataset=text:PATH")
  else:
    require(task == "classification", "task", f"classification {data}")
  size = own.image_size
  is_size = not size or (len(size) == 2 and min(size) > 0)
  require(is_size, "image_size", "HEIGHT,WIDTH, two whole numbers of at least 1")
  has_images = config.dataset.startswith(("hf:", "images:"))
  require(has_images or not size, "image_size", f"left out {data}, which has no encoded images")
  require(len(own.text_columns) == 2, "text_columns", "two names, TEXT,CLIENT")
  columns = [NOTHING, *(f"test_{metric.name}" for metric in TASKS[task].metrics), "test_loss"]
  require(config.keep_best in columns, "keep_best", f"one of {', '.join(columns)}")
  is_aimed = task == "classification" or own.target is not None
  require(is_aimed or not config.stop_at_target, "stop_at_target", "given with --target")
  if task == "classification":
    require(own.target is None, "target", "left out with classification: --target_accuracy is its")
    return
  classes = f"without --task={task}, which has no classes"
  is_file = (config.partition or "").startswith(FILE)
  right = f"natural, iid or power_law with --task={task}, which has no classes to deal by"
  allowed = (None, "natural", "iid", "power_law")
  require(config.partition in allowed or is_file, "partition", right)
  require(config.shift_round is None, "shift_round", f"given {classes}")
  metric = judgement_of(config).main
  if own.target is not None:
    require(metric.low <= own.target <= metric.high, "target", f"a value of {metric.title}")


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
    config.partition != "natural" and not (config.partition or "").startswith(FILE),
    "shift_round",
    f"left out with --partition={config.partition}, whose clients are as they are",
  )
  if config.shift_dirichlet_alpha is not None:
    require(
      config.partition is None or config.partition.startswith("dirichlet"),
      "shift_dirichlet_alpha",
      f"left out with --partition={config.partition}",
    )


def _check_measures(config: Config, require: Callable[[bool, str, str], None]) -> None:
  if config.mask_metrics_every:
    require(
      config.data_placement == "replicated",
      "mask_metrics_every",
      f"0 with --data_placement={config.data_placement}: one device trains all that are compared",
    )
  require(
    not config.wire_feedback or config.wire_dtype in ("int8", "int4"),
    "wire_feedback",
    "left out without --wire_dtype=int8 or int4",
  )
  if config.wire_codec != "plain":
    require(config.metrics, "wire_codec", "plain without --metrics")
    require(
      config.data_placement == "replicated",
      "wire_codec",
      f"plain with --data_placement={config.data_placement}: one device trains who is measured",
    )
    is_there = importlib.util.find_spec("zstandard") is not None
    require(is_there, "wire_codec", "plain without zstandard, which the extra `export` brings")
  try:
    check_installed(config.trackers)
  except TrackerError as error:
    raise ConfigError(str(error)) from error


def _check_client_sparsities(config: Config, require: Callable[[bool, str, str], None]) -> None:
  levels, shares = config.client_sparsities, config.client_sparsity_shares
  if not levels and not shares:
    return
  require(
    method_of(config).takes_densities,
    "client_sparsities",
    f"left out with --algorithm={config.algorithm}, whose clients all have one sparsity; one of"
    f" {', '.join(name for name, m in METHODS.items() if m.takes_densities)} can",
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
