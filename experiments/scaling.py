"""Measures how a round grows with its clients: `python -m experiments.scaling --output_dir=DIR`.

Takes one workload of `experiments.bench` with more and more clients a round, each point in a
process of its own, out of a federation that stays the same. Writes scaling.jsonl, scaling.png and
table.md. Points that scaling.jsonl holds already are kept: what was stopped goes on when it is
started again with the same flags, and more clients or methods can be added later.
"""

import json
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.bench import apart, options
from experiments.bench.apart import MeasurementError
from experiments.bench.options import Settings
from experiments.bench.rows import Row, markdown, print_table
from experiments.bench.workloads import WORKLOADS
from experiments.pictures.plots import plot_scaling
from experiments.terminal import format_bytes
from sparsyfed_jax.io.writers import create_run_dir, read_metrics, write_json

DEFAULTS = Settings(repeats=5, num_clients=10_000)
CLIENTS_PER_ROUND = (10, 30, 100, 300, 1000, 3000, 10_000)

_JSONL_NAME = "scaling.jsonl"
_SETTINGS_NAME = "settings.json"


def main(argv: Sequence[str]) -> None:
  """Measures the points that are missing, and draws all."""
  del argv
  table = absl_flags.FLAGS
  try:
    workload, algorithms, cohorts, settings = read(table)
    options.check_sizes([workload], apart.default_backend(), settings)
    directory = _open_directory(table["output_dir"].value, workload, settings)
    rows = measure(workload, algorithms, cohorts, settings, directory)
  except (flags.ConfigError, MeasurementError, OSError, ValueError) as error:
    flags.fail(error)
  except KeyboardInterrupt:
    print("\ninterrupted; the same command goes on", file=sys.stderr)
    sys.exit(130)
  cells = table_cells(rows)
  (directory / "table.md").write_text(markdown(cells), encoding="utf-8")
  plot_scaling(rows, directory / "scaling.png")
  print_table(cells)
  print(f"files in {directory}", file=sys.stderr)


def define(table: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
  """Defines the flags."""
  known, text = list(WORKLOADS), "what a round is"
  absl_flags.DEFINE_enum("workload", "mlp64", known, text, flag_values=table)
  default, text = list(map(str, CLIENTS_PER_ROUND)), "comma list of clients a round"
  absl_flags.DEFINE_list("clients_per_round", default, text, flag_values=table)
  options.define_settings(DEFAULTS, table)
  text = "where the files go; required"
  absl_flags.DEFINE_string("output_dir", None, text, flag_values=table)


def read(table: absl_flags.FlagValues) -> tuple[str, list[str], list[int], Settings]:
  """Reads the flags.

  Returns:
    The workload, the methods, the clients a round in rising order, and the settings, with the
    largest of them as `clients_per_round`.

  Raises:
    ConfigError: a value is not known or out of range.
  """
  values = table.flag_values_dict()
  listed = values["clients_per_round"]
  cohorts = sorted({int(text) if text.isdecimal() else 0 for text in listed})
  if not cohorts or cohorts[0] < 1:
    raise flags.ConfigError(
      f"--clients_per_round={','.join(listed)}: must be a comma list of numbers of at least 1"
    )
  algorithms, settings = options.read_settings(values)
  return values["workload"], algorithms, cohorts, settings._replace(clients_per_round=cohorts[-1])


def measure(
  workload: str,
  algorithms: Sequence[str],
  cohorts: Sequence[int],
  settings: Settings,
  directory: pathlib.Path,
) -> list[Row]:
  """Measures each point of which scaling.jsonl has none, and adds it there.

  Args:
    workload: its name.
    algorithms: names of methods.
    cohorts: clients a round.
    settings: of all points, but for `clients_per_round`.
    directory: where scaling.jsonl is, or will be.

  Returns:
    All points of scaling.jsonl.

  Raises:
    MeasurementError: a point could not be measured; those before it are kept.
  """
  path = directory / _JSONL_NAME
  rows = read_metrics(path) if path.exists() else []
  done = {(row["algorithm"], row["clients_per_round"]) for row in rows}
  points = [(algorithm, cohort) for cohort in cohorts for algorithm in algorithms]
  for number, (algorithm, cohort) in enumerate(points, start=1):
    title = f"{number}/{len(points)}  {algorithm}, {cohort} clients a round:"
    if (algorithm, cohort) in done:
      print(f"{title} measured before", file=sys.stderr, flush=True)
      continue
    (row,) = apart.measure_apart(
      [workload], [algorithm], settings._replace(clients_per_round=cohort)
    )
    rows.append(row)
    _write_lines(path, rows)
    memory = format_bytes(row["peak_memory_bytes"])
    seconds = row["seconds_per_round"]
    print(f"{title} {seconds:.3g} s, {memory}", file=sys.stderr, flush=True)
  return rows


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
  """Makes the table: a line a point, then how time and memory grew over the last factor of ten."""
  cells = [["algorithm", "clients a round", "s a round", "µs a client", "program", "peak memory"]]
  algorithms = list(dict.fromkeys(row["algorithm"] for row in rows))
  growth = []
  for algorithm in algorithms:
    points = sorted(
      (row for row in rows if row["algorithm"] == algorithm),
      key=lambda row: row["clients_per_round"],
    )
    for row in points:
      cells.append(
        [
          algorithm,
          str(row["clients_per_round"]),
          f"{row['seconds_per_round']:.3g}",
          f"{1e6 * _seconds_per_client(row):.3g}",
          format_bytes(row["program_memory_bytes"]) if row["program_memory_bytes"] else "",
          format_bytes(row["peak_memory_bytes"]),
        ]
      )
    last = points[-1]
    fewer = [row for row in points if 10 * row["clients_per_round"] <= last["clients_per_round"]]
    if fewer:
      growth.append(_growth(fewer[-1], last))
  return cells + growth


def _growth(first: Row, last: Row) -> list[str]:
  def ratio(key: str) -> str:
    return f"x {last[key] / first[key]:.3g}" if first[key] else ""

  per_client = _seconds_per_client(last) / _seconds_per_client(first)
  return [
    last["algorithm"],
    f"{first['clients_per_round']} to {last['clients_per_round']}",
    ratio("seconds_per_round"),
    f"x {per_client:.3g}",
    ratio("program_memory_bytes"),
    ratio("peak_memory_bytes"),
  ]


def _seconds_per_client(row: Row) -> float:
  return row["seconds_per_round"] / row["clients_per_round"]


def _open_directory(path: str | None, workload: str, settings: Settings) -> pathlib.Path:
  if not path:
    raise flags.ConfigError("--output_dir: must be given, so that the points can be kept")
  directory = pathlib.Path(flags.folder(path))
  listed = directory / _SETTINGS_NAME
  values = {"workload": workload, **settings._asdict()}
  del values["clients_per_round"], values["metrics"]  # which every point has on
  if listed.exists():
    if json.loads(listed.read_text(encoding="utf-8")) != values:
      raise FileExistsError(
        f"--output_dir={path}: holds points of other flags ({listed}); choose another directory"
      )
    return directory
  create_run_dir(directory)
  write_json(listed, values)
  return directory


def _write_lines(path: pathlib.Path, rows: Sequence[Row]) -> None:
  """Replaces the file in one step, so that a crash loses no point."""
  temporary = path.with_suffix(".tmp")
  temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  os.replace(temporary, path)


if __name__ == "__main__":
  define()
  absl_flags.adopt_module_key_flags(options)  # for --help
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
