"""The time and energy that an accuracy takes on phones, by the virtual clock, by method.

`python -m experiments.virtual_time --preset=digits --output_dir=runs/virtual_time`, or --smoke.
See experiments/studies/study.py for what the studies have in common, and docs/virtual_time.md for
what the clock counts.
"""

import pathlib
from collections.abc import Sequence

from experiments.pictures.panels import Panel
from experiments.studies import pictures
from experiments.studies.study import ACCURACY, SEEDS, Column, Setting, Study, run, table_of


def report(settings: Sequence[Setting]) -> str:
  def read(title: str, name: str, lacking: str = "not measured") -> Column:
    return Column(title, lambda outcome: outcome.summary.get(name), lambda x: f"{x:.4g}", lacking)

  target = settings[0].outcomes[0].config.target_accuracy
  columns = (
    read("all rounds, s", "virtual_seconds"),
    read(f"until {100 * target:g} % accuracy, s", "virtual_seconds_to_target", "never"),
    read("energy of all clients, J", "energy"),
    ACCURACY,
  )
  return "Virtual time\n\n" + table_of(settings, columns)


def draw(settings: Sequence[Setting], path: pathlib.Path) -> None:
  points = [(s.point, pictures.mean_of(s, "test_accuracy", "virtual_seconds")) for s in settings]
  panel = Panel(
    "Test accuracy",
    "%",
    pictures.lines_of(points, 100),
    x_title="virtual seconds",
    x_log="{:g}".format,
    level=100 * settings[0].outcomes[0].config.target_accuracy,
  )
  pictures.save([panel], path)


STUDY = Study(
  "virtual_time",
  blocks=(("--preset=studies/virtual-time", "--device_profiles=phones", SEEDS),),
  smoke=("--seed=0,1",),
  report=report,
  draw=draw,
)

if __name__ == "__main__":
  run(STUDY)
