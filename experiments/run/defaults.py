"""Defaults of flags that follow from other flags."""

from typing import Any


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
