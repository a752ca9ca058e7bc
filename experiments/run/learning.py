"""The flags that say what is learned and how data is read, and what follows from them."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

from experiments.run.config import FREE, VALUE, ConfigError
from sparsyfed_jax.data.characters import CLIENTS
from sparsyfed_jax.data.dataset import DataError
from sparsyfed_jax.data.readers import find
from sparsyfed_jax.data.readers.record import Reader
from sparsyfed_jax.data.reading import HEADINGS, READING, Reading
from sparsyfed_jax.fed.method import Choice, Knob, Pattern
from sparsyfed_jax.fed.tasks import TASKS, Judgement

TEXT = "text:"  # how the names of data sets begin that are texts


def _default_task(config: Any) -> str:
  return "next_token" if config.dataset.startswith(TEXT) else "classification"


class Learning(NamedTuple):
  """Flags of a run, besides those of `Config` and of its method."""

  task: Annotated[
    str | None,
    Knob(
      f"what is learned, one of {', '.join(TASKS)}; default: next_token of a text, else"
      " classification. With the last two the y of an npz file are (n, labels) of 0 and 1, or"
      " numbers",
      default=_default_task,
    ),
  ] = None
  target: Annotated[
    float | None,
    Knob(
      "value of the task's main metric (perplexity, f1, mse) to which summary.json counts bytes"
      " and rounds; of classification it is --target_accuracy",
    ),
    VALUE,
    FREE,
  ] = None
  text_clients: Annotated[
    str,
    Choice(
      "the clients of a text: blocks (--num_clients blocks of lines), chapters (--text_pattern"
      " finds their headings), or column (of a CSV file, --text_columns)",
      CLIENTS,
    ),
    VALUE,
  ] = READING.clients
  text_pattern: Annotated[
    str, Pattern("regular expression that finds the headings of chapters"), VALUE
  ] = HEADINGS
  text_columns: Annotated[
    tuple[str, ...],
    Knob("TEXT,CLIENT: names of the columns of a CSV file with the text and with its client"),
    VALUE,
  ] = READING.columns
  sequence_length: Annotated[int, Knob("characters of an example of a text", low=1), VALUE] = (
    READING.sequence_length
  )
  example_column: Annotated[
    str | None, Knob("of hf and tff, what is seen; default: the images, numbers or text"), VALUE
  ] = None
  label_column: Annotated[
    str | None, Knob("of hf and tff; default: the only classes, or label"), VALUE
  ] = None
  client_column: Annotated[
    str | None,
    Knob("of hf, whose an example is; default: client_id, user_id, speaker_id, writer_id or such"),
    VALUE,
  ] = None
  image_size: Annotated[
    tuple[int, ...],
    Knob("HEIGHT,WIDTH to which hf and images resize; default: as they are, all of one size"),
    VALUE,
  ] = READING.image_size


def learning_of(config: Any) -> Learning:
  """Collects these flags of a run."""
  return Learning(*(getattr(config, name) for name in Learning._fields))


def is_text(config: Any) -> bool:
  """Tells whether the data of a run is a text."""
  return bool(config.dataset.startswith(TEXT))


def reader_of(config: Any) -> Reader | None:
  """Finds the reader of the data of a run, if it has one; raises ConfigError."""
  try:
    found = find(config.dataset)
  except DataError as error:
    raise ConfigError(str(error)) from error
  return found[0] if found else None


def task_of(config: Any) -> str:
  """Names the task of a run, of flags that need not be resolved."""
  return learning_of(config).task or _default_task(config)


def judgement_of(config: Any) -> Judgement:
  """Finds what the task of a run is judged by."""
  return TASKS[task_of(config)]


def recorded_judgement(content: Mapping[str, Any]) -> Judgement:
  """Finds it for what is read of a config.json or summary.json; earlier ones name no task."""
  return TASKS.get(content.get("task") or "", TASKS["classification"])


def target_of(config: Any) -> float | None:
  """Finds the value that the main metric is to reach; None where none is asked for."""
  if task_of(config) == "classification":
    return float(config.target_accuracy)
  return learning_of(config).target


def reading_of(config: Any) -> Reading:
  """Makes how the data of a run is read."""
  own = learning_of(config)
  return Reading(
    clients=own.text_clients,
    num_clients=config.num_clients or READING.num_clients,
    pattern=own.text_pattern,
    columns=own.text_columns,  # type: ignore[arg-type]  # whose number was checked
    sequence_length=own.sequence_length,
    example_column=own.example_column or "",
    label_column=own.label_column or "",
    client_column=own.client_column or "",
    image_size=own.image_size,
    in_place=config.data_placement == "streamed",
  )


def without_effect(config: Any) -> list[str]:
  """Names those of the flags that the data does not need."""
  reader, is_of_text = reader_of(config), task_of(config) == "next_token"
  vain = [] if is_of_text else ["sequence_length"]
  columns = {"hf": 3, "tff": 2}.get(reader.name if reader else "", 0)
  vain += ("example_column", "label_column", "client_column")[columns:]
  if not is_text(config):
    return [name for name in Learning._fields if name.startswith("text_")] + vain
  others = {"chapters": "text_pattern", "column": "text_columns"}
  own = learning_of(config).text_clients
  return [name for clients, name in others.items() if clients != own] + vain
