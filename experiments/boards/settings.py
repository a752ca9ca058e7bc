"""The settings of a board: the rows that differ in the seed alone, and what they come to."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.boards.rows import Row, form_of
from experiments.pictures.panels import method_title
from experiments.sweeps.results import LACKING
from sparsyfed_jax.algorithms import DENSE, OURS

SHARES = (0.8, 0.9, 0.95)  # of dense FedAvg's accuracy, to which bytes are counted
_DIGITS = 8  # of a digest in a name
# Curves are rounded, and a share of the examples may be the target itself.
_ROUNDED = 1e-6
ROUND, ACCURACY, BYTES = range(3)  # places in a row of a curve


class Setting(NamedTuple):
  """The rows of one entry at one sparsity, of clients dealt in one way."""

  entry: str  # what the method and its form are called
  method: str  # the value of --algorithm
  alpha: float | None  # of the Dirichlet split; None where labels are dealt otherwise
  sparsity: float | None  # None where the method does not read it
  rows: Sequence[Row]

  @property
  def is_whole(self) -> bool:
    """Whether all runs have ended."""
    return not any(kind in row for row in self.rows for kind in LACKING)

  def mean(self, read: Callable[[Row], float | None]) -> float | None:
    """Averages over the seeds; None where a seed has no value."""
    values = [read(row) for row in self.rows] if self.is_whole else [None]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if len(known) == len(values) else None


def settings_of(rows: Sequence[Row]) -> list[Setting]:
  """Groups rows by entry, split and sparsity, in the order in which they come first."""
  names = _names(rows)
  groups: dict[tuple[str, float | None, float | None], list[Row]] = {}
  for row in rows:
    entry = names[_form(row)]
    groups.setdefault((entry, row["dirichlet_alpha"], row["sparsity"]), []).append(row)
  return [
    Setting(entry, method_of(members[0]), alpha, sparsity, members)
    for (entry, alpha, sparsity), members in groups.items()
  ]


def method_of(row: Row) -> str:
  """Reads --algorithm, which a row has where it is not at its default."""
  return str(row["flags"].get("algorithm", OURS))


def _form(row: Row) -> str:
  return json.dumps(_told(row), sort_keys=True)


def _told(row: Row) -> dict[str, Any]:
  """Lists what tells a row's form: its flags, and the code of a stranger's method."""
  digest = row.get("method_sha256")
  return {**form_of(row), **({"method_sha256": digest[:_DIGITS]} if digest else {})}


def _names(rows: Sequence[Row]) -> dict[str, str]:
  """Names forms by their methods, and by what the forms of a method differ in."""
  forms: dict[str, dict[str, Row]] = {}
  for row in rows:
    forms.setdefault(method_of(row), {})[_form(row)] = row
  named = {}
  for method, members in forms.items():
    every = [_told(row) for row in members.values()]
    varied = _telling(every, f"{method}_")
    for form, row in members.items():
      own = _told(row)
      told = [f"{name}={_word(own[name])}" for name in varied if name in own]
      named[form] = ", ".join([method_title(method), *told])
  return named


def _telling(forms: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
  """Chooses flags that tell forms apart, none that those before it make needless.

  --rounds comes first, as defaults of many others follow from it, and a method's own flags last.
  """
  names = dict.fromkeys(name for form in forms for name in form)
  chosen: list[str] = []
  for name in sorted(names, key=lambda name: (name != "rounds", name.startswith(prefix))):
    if _count(forms, [*chosen, name]) > _count(forms, chosen):
      chosen.append(name)
  return chosen


def _count(forms: Sequence[Mapping[str, Any]], names: Sequence[str]) -> int:
  return len({json.dumps([form.get(name) for name in names]) for form in forms})


def _word(value: object) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def dense_accuracy(settings: Sequence[Setting], alpha: float | None) -> float | None:
  """Finds the mean accuracy of dense FedAvg, of its best form, on one split; None without it."""
  found = [
    mean
    for s in settings
    if s.method == DENSE and s.alpha == alpha
    if (mean := s.mean(accuracy)) is not None
  ]
  return max(found, default=None)


def accuracy(row: Row) -> float | None:
  """Reads the test accuracy at the end."""
  return row["accuracy"]


def total_bytes(row: Row) -> float | None:
  """Reads what all clients sent and received in all rounds."""
  return row.get("total_bytes")


def flops_share(row: Row) -> float | None:
  """Divides what a client computes in a round by what it would compute of a dense model."""
  own, dense = row.get("client_flops_per_round"), row.get("dense_client_flops_per_round")
  return own / dense if own is not None and dense else None


def virtual_seconds(row: Row) -> float | None:
  """Reads the virtual clock at the end; None where rounds were not timed."""
  return row.get("virtual_seconds")


def bytes_to(target: float) -> Callable[[Row], float | None]:
  """Makes what reads the bytes of a row until its test accuracy first reached a target."""
  least = target - _ROUNDED
  return lambda row: next((p[BYTES] for p in row["curve"] if p[ACCURACY] >= least), None)


def frontier(settings: Sequence[Setting]) -> list[Setting]:
  """Finds the settings to which no other is both as accurate and as cheap, by total bytes.

  Args:
    settings: of one split.

  Returns:
    Those, cheapest first. Of equal ones the first is there.
  """
  known = [
    (size, -mean, i)
    for i, s in enumerate(settings)
    if (mean := s.mean(accuracy)) is not None and (size := s.mean(total_bytes)) is not None
  ]
  best, found = -math.inf, []
  for _, negative, i in sorted(known):
    if -negative > best:
      best = -negative
      found.append(settings[i])
  return found
