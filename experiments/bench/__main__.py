"""Measures what a round costs: `python -m experiments.bench --workload=cnn32`.

Prints one JSON line for each workload and algorithm on stdout, and a table on stderr when all is
measured. Inputs are random: only time and memory are measured, after compilation and a warm-up,
time as the median of calls that end when the device is done. The methods of a workload take turns,
so that a machine whose speed drifts drifts for all of them, and ratios are medians of those within
a turn.

Every workload has a process of its own, so that the peak memory of one counts for no other: on a
CPU it is the largest during the calls of a method, on an accelerator that of the whole process.
This one leaves the devices alone, because whoever opens an accelerator first takes its memory.
--peer_command=cnn32="python experiments/peers/torch_loop.py --workload=cnn32 --turns" gives another
framework's program a turn too (`experiments.bench.interleave`), and compares a run of 50 rounds as
well, in which making and compiling the programs counts, and the other's first round.
"""

import json
import os
import sys
from collections.abc import Sequence

from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.bench import measuring, options
from experiments.bench.apart import MeasurementError, default_backend, measure_apart
from experiments.bench.interleave import PeerError
from experiments.bench.rows import Row, markdown, print_table, table_cells
from experiments.bench.workloads import SELECTION, group_names, suiting
from sparsyfed_jax.io.writers import create_run_dir


def main(argv: Sequence[str]) -> None:
  """Runs the workloads that the flags name."""
  del argv
  table = absl_flags.FLAGS
  try:
    names, algorithms, settings, peers = options.read(table)
    if table["in_process"].value:
      for row in measuring.measure(names, algorithms, settings, peers):
        print(json.dumps(row), flush=True)
      return
    backend = default_backend()
    names = names or [*suiting(backend), SELECTION]
    options.check_sizes(names, backend, settings)
    directory = table["output_dir"].value
    output_dir = create_run_dir(flags.folder(directory)) if directory else None
  except (flags.ConfigError, MeasurementError, PeerError, OSError) as error:
    flags.fail(error)
  rows: list[Row] = []
  failures = []
  with open(
    output_dir / "bench.jsonl" if output_dir else os.devnull, "w", encoding="utf-8"
  ) as record:
    for group in group_names(names):
      title = ", ".join(group)
      print(f"{title} ...", file=sys.stderr, flush=True)
      try:
        measured = measure_apart(group, algorithms, settings, peers)
      except MeasurementError as error:  # of memory, say; the other workloads may still fit
        print(f"error: {error}", file=sys.stderr, flush=True)
        failures.append(title)
        continue
      except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
      for row in measured:
        print(json.dumps(row), flush=True)
        print(json.dumps(row), file=record, flush=True)
      rows += measured
  if rows:
    print_table(table_cells(rows))
  if output_dir:
    (output_dir / "table.md").write_text(markdown(table_cells(rows)), encoding="utf-8")
  if failures:
    flags.fail(MeasurementError(f"not measured: {'; '.join(failures)}"), code=1)


if __name__ == "__main__":
  options.define()
  absl_flags.adopt_module_key_flags(options)  # for --help
  logging.set_verbosity(logging.WARNING)  # jax tells at length which backends it did not find
  app.run(main, flags_parser=flags.parse)
