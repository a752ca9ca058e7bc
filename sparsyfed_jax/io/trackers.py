"""Metrics sent to TensorBoard and Weights & Biases, beside the record of a run.

The record is `metrics.jsonl`; a tracker that fails while a run goes on is dropped, and the run goes
on without it. The packages are extras, imported when they are asked for.

TensorBoard's own package writes the files: tensorboardX, which is lighter, writes from a thread
that a full disk ends, after which the next rounds wait for it forever.
"""

import contextlib
import functools
import json
import pathlib
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

from sparsyfed_jax.io.writers import PathLike, Row, write_json

TENSORBOARD_DIRECTORY = "tensorboard"
WANDB_FILE = "wandb.json"

Write: TypeAlias = Callable[[Row], None]


class TrackerError(ValueError):
  """A tracker that cannot be had; the one-line message says what would help."""


class TrackerWarning(UserWarning):
  """A tracker was dropped."""


class Tracker(NamedTuple):
  """How rows reach a service.

  Attributes:
    load: imports the package; raises where it cannot be had.
    open: of the directory of a run, its configuration and the last round that was done before;
      the context's value writes a row.
  """

  load: Callable[[], Any]
  open: Callable[[pathlib.Path, Mapping[str, Any], int], AbstractContextManager[Write]]


def check_installed(names: Collection[str]) -> None:
  """Refuses trackers that are unknown or whose package is missing; opens nothing.

  Args:
    names: of TRACKERS.

  Raises:
    TrackerError: one of them cannot be had.
  """
  for name in names:
    if name not in TRACKERS:
      raise TrackerError(f"--trackers={name}: must be among {', '.join(TRACKERS)}")
    try:
      TRACKERS[name].load()
    except Exception as error:  # ImportError, or what packages raise that do not fit each other
      raise TrackerError(
        f"--trackers={name}: needs `pip install -e '.[{name}]'` ({_one_line(error)})"
      ) from error


@contextlib.contextmanager
def open_trackers(
  names: Collection[str],
  directory: PathLike,
  config: Mapping[str, Any],
  last_round: int = 0,
  warn: Callable[[str], None] | None = None,
) -> Iterator[Write]:
  """Opens trackers of a run, and closes them however it ends.

  What a tracker raises does not get out: `warn` is told once, and the tracker gets no more rows.

  Args:
    names: of TRACKERS; none is fine too.
    directory: of the run.
    config: what the run was told, as JSON knows it.
    last_round: rows of later rounds are sent. Some may have been sent before, by a run that was
      interrupted: TensorBoard then shows the new ones, Weights & Biases keeps the old ones.
    warn: called with one line that names the tracker, the directory and the error; by default it
      becomes a TrackerWarning.

  Yields:
    `write(row)`, of a row as `MetricsWriter.write` takes it. Its `round` is the step; each entry of
    a list is a series of its own, `layer_density/0` and so on; None is left out.

  Raises:
    TrackerError: as `check_installed`.
  """
  check_installed(names)
  place = pathlib.Path(directory)
  writes: dict[str, Write] = {}
  contexts: dict[str, AbstractContextManager[Write]] = {}

  def drop(name: str, error: Exception) -> None:
    del contexts[name]
    writes.pop(name, None)
    text = f"--trackers={name}: {place} goes on without it ({_one_line(error)})"
    if warn is None:
      warnings.warn(text, TrackerWarning, stacklevel=2)
    else:
      warn(text)

  def close(name: str, *exception: Any) -> None:
    if name not in contexts:
      return
    try:
      contexts[name].__exit__(*exception)
    except Exception as error:
      if error is not exception[1]:
        drop(name, error)

  def write(row: Row) -> None:
    for name in list(writes):
      try:
        writes[name](row)
      except Exception as error:  # of the network, the disk, or what the package makes of them
        context = contexts[name]
        drop(name, error)
        with contextlib.suppress(Exception):
          context.__exit__(type(error), error, error.__traceback__)

  with contextlib.ExitStack() as stack:
    for name in dict.fromkeys(names):
      contexts[name] = TRACKERS[name].open(place, config, last_round)
      try:
        writes[name] = contexts[name].__enter__()
      except Exception as error:
        drop(name, error)
      else:
        stack.push(functools.partial(close, name))
    yield write


def _series(row: Row) -> dict[str, Any]:
  """Makes one float, int or str a name, without the round."""
  series: dict[str, Any] = {}
  for column, value in row.items():
    plain = value.tolist() if hasattr(value, "tolist") else value  # NumPy's and JAX's arrays
    if isinstance(plain, list | tuple):
      series |= {f"{column}/{i}": item for i, item in enumerate(plain)}
    else:
      series[column] = plain
  return {name: value for name, value in series.items() if name != "round" and value is not None}


def _load_tensorboard() -> Any:
  # Of these nothing imports TensorFlow, whether it is there or not.
  from tensorboard.compat.proto import event_pb2, summary_pb2
  from tensorboard.plugins.hparams.summary_v2 import hparams_pb
  from tensorboard.plugins.text.summary_v2 import text_pb
  from tensorboard.summary.writer.record_writer import RecordWriter

  return event_pb2, summary_pb2, hparams_pb, text_pb, RecordWriter


@contextlib.contextmanager
def _open_tensorboard(
  directory: pathlib.Path, config: Mapping[str, Any], last_round: int
) -> Iterator[Write]:
  """Writes a file of events into `tensorboard/`; of the files there the last one by name counts."""
  event_pb2, summary_pb2, hparams_pb, text_pb, RecordWriter = _load_tensorboard()
  place = directory / TENSORBOARD_DIRECTORY
  place.mkdir(exist_ok=True)
  count = len(list(place.iterdir()))
  name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{count:04d}"
  with open(place / name, "xb") as file:
    records = RecordWriter(file)

    def add(step: int, **content: Any) -> None:
      event = event_pb2.Event(wall_time=time.time(), step=step, **content)
      records.write(event.SerializeToString())

    def write(row: Row) -> None:
      summary = summary_pb2.Summary()
      for tag, value in _series(row).items():
        if isinstance(value, str):
          summary.MergeFrom(text_pb(tag, value))
        else:
          summary.value.add(tag=tag, simple_value=value)
      add(int(row["round"]), summary=summary)
      file.flush()

    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    text = json.dumps(config, indent=2, default=str)
    scalars = {key: value for key, value in config.items() if isinstance(value, int | float | str)}
    add(0, file_version="brain.Event:2")
    add(last_round + 1, session_log=start)  # what earlier files have from this step on is dropped
    add(last_round + 1, summary=text_pb("config", f"```json\n{text}\n```"))
    add(last_round + 1, summary=hparams_pb(scalars))
    file.flush()
    yield write


def _load_wandb() -> Any:
  # Where only a folder `wandb` is found, such as runs leave, this is an ImportError too.
  from wandb import init

  return init


@contextlib.contextmanager
def _open_wandb(
  directory: pathlib.Path, config: Mapping[str, Any], last_round: int
) -> Iterator[Write]:
  """Goes on with the run whose name is in `wandb.json`; the service drops steps that it has.

  Everything else is said in the environment: WANDB_MODE, WANDB_PROJECT and so on.
  """
  del last_round
  init = _load_wandb()
  known = directory / WANDB_FILE
  if not known.exists():
    write_json(known, {"id": uuid.uuid4().hex})
  run = init(
    dir=str(directory.absolute()),
    id=json.loads(known.read_text(encoding="utf-8"))["id"],
    name=directory.name,
    config=dict(config),
    resume="allow",
    reinit="create_new",  # runs side by side are open at the same time
  )
  try:
    yield lambda row: run.log(_series(row), step=int(row["round"]), commit=True)
  except BaseException:
    run.finish(exit_code=1)  # leaving `with run` would print a traceback
    raise
  run.finish()


def _one_line(error: Exception) -> str:
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= 200 else f"{text[:200]}..."


TRACKERS = {
  "tensorboard": Tracker(_load_tensorboard, _open_tensorboard),
  "wandb": Tracker(_load_wandb, _open_wandb),
}
