"""What a run was begun with, as config.json keeps it, and what may differ when it goes on."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import flags
from experiments.run import identity
from experiments.run.directory import CONFIG_NAME
from experiments.run.environment import describe_environment
from experiments.run.models import model_digest
from experiments.run.settings import source_digest
from sparsyfed_jax.io.writers import write_json

# Of the data, in the order in which they are compared; the last are digests.
_DATA = (
  "partition",
  "num_classes",
  "input_shape",
  "train_examples",
  "test_examples",
  "num_clients",
  "examples_sha256",
  "split_sha256",
  "init_sha256",
  "fleet_sha256",
)
_NEEDED = ("dataset", "model", "algorithm", "rounds", "seed", "data")
# Of no interest to anybody who wants to know how the rows came about.
_UNTOLD = ("output_dir", "resume", "discard_rounds", "compilation_cache_dir", "process_id")
# Whose fault it is where they differ; else --dataset.
_FLAGS_OF = {
  "split_sha256": "partition",
  "init_sha256": "init_from",
  "partition": "partition",
  "fleet_sha256": "device_profiles",
}


def describe(config: flags.Config, facts: Mapping[str, Any]) -> dict[str, Any]:
  """Makes the contents of config.json.

  Args:
    config: resolved flags.
    facts: what the data made of them, as `Experiment` has them.
  """
  code = {name: digest for name, digest in code_of(config).items() if digest is not None}
  return {**recorded_flags(config), **code, "data": facts, **describe_environment()}


def read(directory: pathlib.Path) -> dict[str, Any]:
  """Reads config.json of a run that is to go on.

  Raises:
    ConfigError: there is none, or it is damaged.
  """
  path = directory / CONFIG_NAME
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    reason = f"not JSON ({error})" if isinstance(error, ValueError | RecursionError) else error
    raise flags.ConfigError(
      f"--resume: --output_dir={directory} holds no run to go on with ({path}: {reason})"
    ) from error

  def refuse(what: str) -> None:
    raise flags.ConfigError(f"--resume: {path}: {what}")

  if not isinstance(content, dict):
    refuse(f"must be a JSON object, is {json.dumps(content)[:60]}")
  for name in _NEEDED:
    if name not in content:
      refuse(f"{name} is missing")
  objects = {"data": content["data"], "versions": content.get("versions", {})}
  for name, value in objects.items():
    if not isinstance(value, dict):
      refuse(f"{name} must be an object, is {json.dumps(value)[:60]}")
  chunk = content["data"].get("clients_per_chunk", 1)
  if type(chunk) is not int or chunk < 1:
    refuse(f"data.clients_per_chunk must be a number of clients, is {json.dumps(chunk)[:60]}")
  changes = content.get("resumed", [])
  is_list = isinstance(changes, list) and all(isinstance(change, dict) for change in changes)
  if not is_list or not all(isinstance(change.get("now"), dict) for change in changes):
    refuse(f"resumed must be a list of changes, is {json.dumps(changes)[:60]}")
  return content


def check_flags(before: Mapping[str, Any], config: flags.Config, directory: pathlib.Path) -> None:
  """Checks that a run goes on with the flags that it was begun with.

  Raises:
    ConfigError: naming the flag that differs.
  """
  now = json.loads(json.dumps(recorded_flags(config)))
  # What follows from other flags comes last: those are to be named.
  for name, value in sorted(now.items(), key=lambda item: item[0] in flags.DERIVED):
    if name in flags.WITHOUT_EFFECT or before.get(name, value) == value:
      continue
    if name == "partition" and value is None:  # which the data tells: `check_data`
      continue
    if str(before[name]) == str(value):  # a text in the place of a number, say
      place = directory / CONFIG_NAME
      raise flags.ConfigError(f"--resume: {place}: {name} is {json.dumps(before[name])[:60]}")
    raise flags.ConfigError(
      f"--{name}={value}: must be {before[name]} to go on with the run in {directory}"
    )
  for name, digest in code_of(config).items():
    if before.get(name) != digest:
      flag = "algorithm" if name == "method_sha256" else "model"
      raise flags.ConfigError(
        f"--{flag}={getattr(config, flag)}: its file is not that which the run in {directory} was"
        f" begun with ({name} in {CONFIG_NAME}); --resume goes on with the same code alone"
      )


def check_data(
  before: Mapping[str, Any],
  config: flags.Config,
  facts: Mapping[str, Any],
  directory: pathlib.Path,
) -> None:
  """Checks that a run goes on with the data that it was begun with.

  Raises:
    ConfigError: naming what differs.
  """
  recorded, now = before["data"], json.loads(json.dumps(dict(facts), default=float))
  for name in _DATA:
    if name not in recorded or name not in now or recorded[name] == now[name]:
      continue
    flag = _FLAGS_OF.get(name, "dataset")
    value = facts["partition"] if flag == "partition" else getattr(config, flag)
    what = {
      "examples_sha256": "its examples are not those",
      "split_sha256": "the clients' examples are not those",
      "init_sha256": "its weights are not those",
      "fleet_sha256": "the clients' devices, or when they are available, are not those",
    }.get(name, f"{name} is {now[name]}, not the {recorded[name]}")
    raise flags.ConfigError(
      f"--{flag}={value}: {what} that the run in {directory} was begun with"
      f" ({name} in {CONFIG_NAME}); --resume goes on with the same data alone"
    )
  if "examples_sha256" not in recorded:
    print(
      f"note: {directory / CONFIG_NAME} was written without a digest of the data; --dataset="
      f"{config.dataset} is taken to be as it was"
    )


def with_recorded_chunk(config: flags.Config, clients_per_chunk: int) -> flags.Config:
  """Keeps what was chosen by the memory that was free when the run began: other chunks, other bits.

  Args:
    config: of the run that goes on.
    clients_per_chunk: as `recorded_chunk`.
  """
  is_chosen = config.clients_per_chunk == flags.AUTO and clients_per_chunk > 0
  return config._replace(clients_per_chunk=str(clients_per_chunk)) if is_chosen else config


def recorded_chunk(before: Mapping[str, Any]) -> int:
  """Finds how many clients a run that goes on trained side by side, 0 if that is not recorded."""
  return int(before["data"].get("clients_per_chunk", 0))


def note_changes(
  before: Mapping[str, Any],
  config: flags.Config,
  facts: Mapping[str, Any],
  directory: pathlib.Path,
  rounds_done: int,
) -> list[str]:
  """Records beside what a run was begun with what is different from now on.

  Args:
    before: as `read`.
    config: of the run that goes on.
    facts: of its data.
    directory: of the run.
    rounds_done: after which it goes on.

  Returns:
    What has changed of the software and the machine, a line each.
  """
  now = json.loads(json.dumps(describe(config, facts), default=float))
  first, current = _told(before), _told(now)
  names = [name for name in identity.differences(first, current) if name in first]
  differences = {name: current.get(name) for name in names}
  changes = before.get("resumed", [])
  if differences != (changes[-1]["now"] if changes else {}):
    entry = {"after_round": rounds_done, "now": differences}
    write_json(directory / CONFIG_NAME, {**before, "resumed": [*changes, entry]})
  environment = _environment(now)
  return [
    f"{name} is {current.get(name)}, was {first[name]} when the run began"
    for name in names
    if name in environment
  ]


def code_of(config: flags.Config) -> dict[str, str | None]:
  """Makes digests of the code of others: of the method and of the model."""
  return {"method_sha256": source_digest(config), "model_sha256": model_digest(config)}


def recorded_flags(config: flags.Config) -> dict[str, Any]:
  """Makes what config.json has of the flags: null of one that has no effect beside the others."""
  return {**config._asdict(), **dict.fromkeys(flags.ignored(config))}


def _environment(content: Mapping[str, Any]) -> dict[str, Any]:
  names = [name for name in describe_environment() if name != "versions"]
  known = {name: content[name] for name in names if name in content}
  return {**known, **content.get("versions", {})}


def _told(content: Mapping[str, Any]) -> dict[str, Any]:
  """What a run may change when it goes on and should say so."""
  names = [name for name in flags.WITHOUT_EFFECT if name not in _UNTOLD]
  used = {name: content[name] for name in names if name in content}
  in_data = ("clients_per_chunk", "devices", "processes")
  used |= {name: content["data"][name] for name in in_data if name in content["data"]}
  return used | _environment(content)
