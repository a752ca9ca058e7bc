"""Defaults of flags that follow from other flags, or from the data."""

from typing import Any

from sparsyfed_jax.data.dataset import Dataset

_BY_CLASS = ("digits", "npz", "tfds")


def default_client_lr(config: Any) -> float:
  """Chooses the clients' first rate for their optimizer; of SGD one that suits its momentum."""
  if config.client_optimizer == "adamw":
    return 0.01
  return round(0.5 * (1 - config.client_momentum), 9)


def default_server_lr(config: Any) -> float:
  """Chooses the server's rate: adaptive optimizers move every weight by about so much a round."""
  return 1.0 if config.server_optimizer in ("sgd", "momentum") else 0.01


def default_ramp(config: Any) -> int:
  return 0 if config.sparsity_schedule == "constant" else config.rounds // 2


def default_shift_alpha(config: Any) -> float | None:
  return None if config.shift_round is None else config.dirichlet_alpha


def default_shift_seed(config: Any) -> int | None:
  return None if config.shift_round is None else (config.seed + 1) % 2**32


def known_partition(config: Any) -> str | None:
  """Names the split of data that is dealt by class whatever its clients; None of other data.

  That is how all data with classes was dealt before there were other formats.
  """
  has_classes = config.task in (None, "classification")
  is_one = config.dataset.partition(":")[0] in _BY_CLASS
  return "dirichlet" if has_classes and is_one else None


def with_partition(config: Any, dataset: Dataset) -> Any:
  """Fills in the split that suits the data where --partition is left out.

  Where the data has clients and no others are asked for, those, and else by class or at random.
  """
  chosen = config.partition or known_partition(config)
  if chosen:
    return config._replace(partition=chosen)
  is_free = config.num_clients in (None, dataset.num_clients) and config.shift_round is None
  if dataset.num_clients and is_free:
    return config._replace(partition="natural")
  has_classes = dataset.kind == "classification"
  return config._replace(partition="dirichlet" if has_classes else "iid")
