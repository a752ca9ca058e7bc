"""A run among those that are trained side by side."""

import pathlib
from typing import NamedTuple

from experiments.run.build import Experiment
from experiments.run.config import Config


class Member(NamedTuple):
  """A run among those side by side."""

  config: Config  # resolved
  experiment: Experiment
  directory: pathlib.Path
