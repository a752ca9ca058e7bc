"""The runs in a folder, their settings, and statistics over the seeds of a setting."""

import json
import os
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import flags
from experiments.pictures.panels import method_title
from experiments.report.files import check_files, read_sweep, reason_to_skip
from experiments.run import files as run_files
from experiments.run.directory import CONFIG_NAME
from experiments.run.mask_files import SIMILARITY_NAME
from experiments.run.measures import mean_from
from experiments.sweeps.members import GRID_NAME
from sparsyfed_jax.algorithms import METHODS
from sparsyfed_jax.fed.tasks import TASKS
from sparsyfed_jax.io.writers import JSONL_NAME, SUMS_NAME

ENDED, DIVERGED, UNFINISHED, DAMAGED = STATES = ("ended", "diverged", "unfinished", "damaged")

# All that is read of a run.
_FILES = (CONFIG_NAME, JSONL_NAME, SUMS_NAME, run_files.SUMMARY_NAME, SIMILARITY_NAME)
_DRAWN_ANEW = ("table.md", "sweep.png")  # of a sweep
# Of config.json, besides the flags.
_CODE = "method_sha256"  # of a stranger's method
_FACTS = ("data", "device", "jax_enable_x64", "xla_flags", "versions", "resumed", _CODE)
# Flags that change no training.
_NO_SETTING = (
  *("seed", "eval_every", "client_eval", "metrics", "mask_metrics_every", "mask_metrics_clients"),
  *flags.WITHOUT_EFFECT,
)
# Flags that decide which others are read.
_CHOOSING = ("algorithm", "dataset", "text_clients")
_DEFAULTS: Mapping[str, Any] = json.loads(json.dumps(flags.DEFAULTS._asdict()))


class Run(NamedTuple):
  """What a run left in its directory."""

  path: str  # from the folder of the runs
  config: dict[str, Any]  # {} where it is damaged
  rows: list[dict[str, Any]]
  summary: dict[str, Any]  # {} unless it ended
  state: str  # of STATES
  note: str  # how it diverged, or what is damaged
  similarity: dict[str, Any]  # of masks between rounds, or {}

  @property
  def flags(self) -> dict[str, Any]:
    return {name: value for name, value in self.config.items() if name not in _FACTS}

  @property
  def rounds_done(self) -> int:
    return int(self.rows[-1].get("round", len(self.rows))) if self.rows else 0


class Setting(NamedTuple):
  """Runs that differ in their seed alone."""

  values: dict[str, Any]  # of the flags that differ between settings, where the method reads them
  runs: list[Run]  # one a seed

  @property
  def label(self) -> str:
    """Names the setting in pictures."""
    return ", ".join(filter(None, (self.method, self.rest)))

  @property
  def method(self) -> str:
    """Names the method, or nothing where it does not differ."""
    return method_title(self.values["algorithm"]) if "algorithm" in self.values else ""

  @property
  def others(self) -> dict[str, Any]:
    """The flags that differ, without the method."""
    return {name: value for name, value in self.values.items() if name != "algorithm"}

  @property
  def rest(self) -> str:
    """Names the other flags that differ."""
    return ", ".join(f"{name}={text(value)}" for name, value in self.others.items())

  @property
  def shown(self) -> list[Run]:
    """The runs that ended, or else those that have not, of which pictures show what there is."""
    return [run for run in self.runs if run.state == ENDED] or self.runs


class Report(NamedTuple):
  """What the page is about."""

  root: pathlib.Path
  runs: list[Run]
  varied: list[str]  # flags that differ between the settings
  settings: list[Setting]
  repeats: list[Run]  # of a setting and a seed that another run has, left out of the statistics
  incomplete: dict[str, tuple[int, int]]  # path of a sweep -> its runs begun, runs of its grid
  refused: dict[str, str]  # path of a sweep's run that could not start -> why
  skipped: dict[str, str]  # path of what is not shown -> why
  tables: list[str]  # paths of Markdown
  pictures: list[str]  # paths of PNGs


def read(root: pathlib.Path) -> Report:
  """Reads all runs below a folder, or that it is.

  Links that lead out of the folder are not followed, and what is no regular file is not opened. A
  run of which a file is damaged is marked.

  Raises:
    ConfigError: there is none, or none that can be read.
  """
  runs: list[Run] = []
  tables: list[str] = []
  pictures: list[str] = []
  sweeps: dict[pathlib.Path, list[dict[str, Any]] | None] = {}
  skipped: dict[str, str] = {}

  def is_shown(place: pathlib.Path) -> bool:
    reason = reason_to_skip(place, root)
    if reason:
      skipped[_path(place, root)] = reason
    return not reason

  def note(error: OSError) -> None:
    skipped[_path(pathlib.Path(error.filename), root)] = str(error.strerror)

  for folder, folders, files in os.walk(root, onerror=note):
    folders.sort()
    here = pathlib.Path(folder)
    for name in folders:
      if (here / name).is_symlink():  # which is not walked; within the folder, it is found itself
        is_shown(here / name)
    if CONFIG_NAME in files and JSONL_NAME in files:
      runs.append(_read_run(here, root))
      folders.clear()  # its checkpoints
      continue
    drawn: tuple[str, ...] = ()
    if GRID_NAME in files:
      try:
        sweeps[here.relative_to(root)] = read_sweep(here, root)
      except (run_files.DamagedError, OSError) as error:
        skipped[_path(here / GRID_NAME, root)] = str(error)
      drawn = _DRAWN_ANEW
    for name in sorted(set(files) - set(drawn)):
      shown = {".md": tables, ".png": pictures}.get(pathlib.Path(name).suffix)
      if shown is not None and is_shown(here / name):
        shown.append(_path(here / name, root))
  if not runs:
    raise flags.ConfigError(
      f"RUNS={root}: must hold runs, directories with {CONFIG_NAME} and {JSONL_NAME}; there is none"
    )
  if all(run.state == DAMAGED for run in runs):
    raise flags.ConfigError(runs[0].note)
  varied, settings, repeats = _group([run for run in runs if run.config])
  incomplete, refused = _compare(sweeps, runs)
  return Report(
    root, runs, varied, settings, repeats, incomplete, refused, skipped, tables, pictures
  )


def _read_run(directory: pathlib.Path, root: pathlib.Path) -> Run:
  config: dict[str, Any] = {}
  try:
    check_files(directory, _FILES, root)
    config = _printable(run_files.read_config(directory))
    rows = run_files.read_rows(directory)
    has_ended = (directory / run_files.SUMMARY_NAME).exists()
    summary = run_files.read_summary(directory) if has_ended else {}
    run_files.check_agreement(summary, rows, directory)
    similarity = run_files.read_similarity(directory)
  except (run_files.DamagedError, OSError) as error:
    return Run(_path(directory, root), config, [], {}, DAMAGED, " ".join(str(error).split()), {})
  state = DIVERGED if "diverged" in summary else ENDED if summary else UNFINISHED
  return Run(
    path=_path(directory, root),
    config=config,
    rows=rows,
    summary=summary if state == ENDED else {},
    state=state,
    note=str(summary.get("diverged", "")),
    similarity=similarity,
  )


def _printable(config: dict[str, Any]) -> dict[str, Any]:
  """Writes `?` for what is no letter: names of files may be any bytes."""
  text = json.dumps(config, ensure_ascii=False).encode(errors="replace")
  printable: dict[str, Any] = json.loads(text)
  return printable


def _compare(
  sweeps: Mapping[pathlib.Path, list[dict[str, Any]] | None], runs: Sequence[Run]
) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
  """Finds sweeps of which runs are missing, and runs that could not start."""
  incomplete, refused = {}, {}
  for sweep, listed in sweeps.items():
    found = [run for run in runs if pathlib.Path(run.path).is_relative_to(sweep)]
    possible = [run for run in listed or [] if "refused" not in run]
    if len(found) < len(possible):
      incomplete[sweep.as_posix()] = (len(found), len(possible))
    for run in listed or []:
      if "refused" in run:
        refused[(sweep / str(run.get("directory"))).as_posix()] = str(run["refused"])
  return incomplete, refused


def _path(path: pathlib.Path, root: pathlib.Path) -> str:
  return path.relative_to(root).as_posix()


def text(value: Any) -> str:
  """Writes the value of a flag as on a command line."""
  if isinstance(value, list):
    return ",".join(map(text, value))
  return "default" if value is None else str(value).removesuffix(".0")


def given_flags(run: Run) -> dict[str, Any]:
  """Collects the flags that the run's method reads.

  Returns:
    Values by name; those that follow from other flags, as they do by default, are None.
  """
  values = {**_DEFAULTS, **run.flags}
  is_known = values["algorithm"] in METHODS
  if is_known:
    chosen = {name: values[name] for name in _CHOOSING if values[name] is not None}
    ignored = set(flags.ignored(flags.DEFAULTS._replace(**chosen)))
  else:  # of another version, or somebody's own, whose code is not to run
    ignored = {name for name, value in run.flags.items() if value is None}
  read_by_method = {name: value for name, value in values.items() if name not in ignored}
  sources = {
    name: value
    for name, value in read_by_method.items()
    if name in _DEFAULTS and name not in flags.DERIVED and value is not None
    if name != "algorithm" or is_known
  }
  for name in flags.DERIVED:  # some of which follow from others of them
    derived = getattr(flags.resolve(flags.DEFAULTS._replace(**sources)), name)
    if name in read_by_method and read_by_method[name] == derived:
      read_by_method[name] = None
    elif read_by_method.get(name) is not None:
      sources[name] = read_by_method[name]
  return read_by_method


def changed_flags(run: Run) -> dict[str, Any]:
  """Collects the flags that are not at their defaults."""
  return {
    name: value
    for name, value in given_flags(run).items()
    if name != "output_dir" and value != _DEFAULTS.get(name)
  }


def _group(runs: Sequence[Run]) -> tuple[list[str], list[Setting], list[Run]]:
  given = [given_flags(run) for run in runs]
  codes = {(str(run.flags["algorithm"]), str(run.config.get(_CODE))) for run in runs}
  names = [algorithm for algorithm, _ in codes]
  for run, values in zip(runs, given, strict=True):
    algorithm = str(run.flags["algorithm"])
    if names.count(algorithm) > 1:  # whose code has changed between runs
      values["algorithm"] = f"{algorithm} ({str(run.config.get(_CODE))[:8]})"
  order = ["algorithm", *_DEFAULTS]  # and what other versions have
  names = sorted(
    {name for values in given for name in values if name not in _NO_SETTING},
    key=lambda name: (order.index(name) if name in order else len(order), name),
  )
  varied = [
    name
    for name in names
    if len({json.dumps(values[name]) for values in given if name in values}) > 1
  ]
  groups: dict[str, Setting] = {}
  for run, values in zip(runs, given, strict=True):
    point = {name: values[name] for name in varied if name in values}
    shown = {name: run.flags.get(name) if point[name] is None else point[name] for name in point}
    groups.setdefault(json.dumps(point), Setting(shown, [])).runs.append(run)
  settings, repeats = [], []
  for setting in groups.values():
    by_seed: dict[str, Run] = {}
    # Of runs that repeat each other the one that got furthest counts.
    for run in sorted(setting.runs, key=lambda run: STATES.index(run.state)):
      seed = json.dumps(run.config.get("seed"))
      if seed in by_seed:
        repeats.append(run)
      by_seed.setdefault(seed, run)
    settings.append(setting._replace(runs=list(by_seed.values())))
  settings.sort(key=lambda setting: [_order(setting.values.get(name)) for name in varied])
  return varied, settings, repeats


def _order(value: Any) -> tuple[bool, float, str]:
  """Sorts numbers by size before texts by letter."""
  is_number = isinstance(value, int | float)
  return not is_number, float(value) if is_number else 0.0, text(value)


class Measure(NamedTuple):
  """A column of the table."""

  title: str
  unit: str
  value: Callable[[Run], Any]  # None where it is not known
  factor: float
  decimals: int
  asked_by: str = ""  # entry of summary.json; where it is set, to have no value is a result


def _end(name: str) -> Callable[[Run], Any]:
  return lambda run: run.summary.get(name)


def _mean(name: str, first_round: int = 1) -> Callable[[Run], Any]:
  return lambda run: mean_from(run.rows, name, first_round)


def _relative_flops(run: Run) -> float | None:
  own, dense = map(run.summary.get, ("client_flops_per_round", "dense_client_flops_per_round"))
  return own / dense if own is not None and dense else None


def _to(what: str, target: str) -> Callable[[Run], Any]:
  """Reads what it took to reach a target, of runs that had one of this kind."""
  return lambda run: run.summary.get(f"{what}_to_target") if run.summary.get(target) else None


_TARGET, _OTHER_TARGET, _SHIFT = "target_accuracy", "target", "shift_round"
# Metrics of tasks besides accuracy.
OTHER_METRICS = tuple(
  {
    metric.name: metric
    for judgement in TASKS.values()
    for metric in judgement.metrics
    if metric.name != "accuracy"
  }.values()
)
_UP, _DOWN = "uplink_bytes_per_client_round", "downlink_bytes_per_client_round"
MEASURES = (
  Measure("Test accuracy", "%", _end("test_accuracy"), 100, 2),
  *(
    Measure(f"Test {m.title}", m.unit, _end(f"test_{m.name}"), m.factor, m.decimals)
    for m in OTHER_METRICS
  ),
  Measure("Zeros among prunable weights", "%", _end("prunable_sparsity"), 100, 2),
  Measure("Uplink a client and round", "kB", _end(_UP), 1e-3, 1),
  Measure("Downlink a client and round", "kB", _end(_DOWN), 1e-3, 1),
  Measure("Traffic to the target accuracy", "MB", _to("bytes", _TARGET), 1e-6, 1, _TARGET),
  Measure("Rounds to the target accuracy", "", _to("rounds", _TARGET), 1, 1, _TARGET),
  Measure("Traffic to the target", "MB", _to("bytes", _OTHER_TARGET), 1e-6, 1, _OTHER_TARGET),
  Measure("Rounds to the target", "", _to("rounds", _OTHER_TARGET), 1, 1, _OTHER_TARGET),
  Measure("Client regrowth", "%", _mean("client_regrowth", 2), 100, 3),
  Measure("Server regrowth", "%", _mean("server_regrowth", 2), 100, 3),
  Measure("IoU of clients’ masks", "", _mean("client_mask_iou"), 1, 3),
  Measure("Training FLOPs of dense", "%", _relative_flops, 100, 1),
  Measure("Accuracy before the shift", "%", _end("accuracy_before_shift"), 100, 2),
  Measure("Lowest after it", "%", _end("lowest_accuracy_after_shift"), 100, 2),
  Measure("Rounds to regain it", "", _end("rounds_to_regain"), 1, 1, _SHIFT),
)


def known_measures(runs: Sequence[Run]) -> list[Measure]:
  """Selects the columns of which any run that ended has something to say."""
  return [measure for measure in MEASURES if mean_and_deviation(runs, measure) != "–"]


def mean_and_deviation(runs: Sequence[Run], measure: Measure) -> str:
  """Writes the mean and standard deviation (n - 1) over the runs that ended.

  Returns:
    `85.65 ± 2.95`, without deviation of one value, and with `(1 of 2)` where not all have one.
  """
  ended = [run for run in runs if run.state == ENDED]
  known = [measure.factor * value for run in ended if (value := measure.value(run)) is not None]
  if not known:
    is_asked = any(run.summary.get(measure.asked_by) is not None for run in ended)
    return "never" if is_asked else "–"
  cell = f"{statistics.fmean(known):.{measure.decimals}f}"
  if len(known) > 1:
    cell += f" ± {statistics.stdev(known):.{measure.decimals}f}"
  return cell if len(known) == len(ended) else f"{cell} ({len(known)} of {len(ended)})"
