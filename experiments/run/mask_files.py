"""The global masks of a run, kept now and then, and how alike they are.

`masks/round-000010.npy` holds the mask after round 10, eight prunable parameters a byte.
`mask_similarity.json` holds the intersection over union of each two of them.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsyfed_jax.io.writers import write_json

MASKS_NAME = "masks"
SIMILARITY_NAME = "mask_similarity.json"


def save_mask(directory: pathlib.Path, round_number: int, packed: np.ndarray) -> None:
  """Keeps a mask, (num_bytes,) uint8; a reader sees the whole file or none."""
  masks = directory / MASKS_NAME
  masks.mkdir(exist_ok=True)
  temporary = masks / f".{os.getpid()}.tmp"
  with open(temporary, "wb") as file:
    np.save(file, packed)
  os.replace(temporary, masks / f"round-{round_number:06d}.npy")


def write_similarity(directory: pathlib.Path) -> None:
  """Compares each two masks that were kept, if there are any.

  Raises:
    OSError: a file does not hold a mask of this run.
  """
  paths = sorted((directory / MASKS_NAME).glob("round-*.npy"))
  if not paths:
    return
  masks = [_read_mask(path) for path in paths]
  for path, mask in zip(paths, masks, strict=True):
    if mask.shape != masks[-1].shape:
      raise OSError(f"{path}: holds {mask.size} bytes, must be {masks[-1].size} like {paths[-1]}")
  iou = np.ones((len(masks), len(masks)))
  for i, first in enumerate(masks):
    for j, second in enumerate(masks[:i]):
      either = int(np.bitwise_count(first | second).sum())
      both = int(np.bitwise_count(first & second).sum())
      iou[i, j] = iou[j, i] = both / either if either else 1.0
  rounds = [int(path.stem.removeprefix("round-")) for path in paths]
  write_json(directory / SIMILARITY_NAME, {"rounds": rounds, "iou": iou})


def iou_by_distance(table: Mapping[str, Any]) -> dict[int, float]:
  """Averages what `write_similarity` wrote over the pairs that are as many rounds apart."""
  rounds = table.get("rounds", [])
  found: dict[int, list[float]] = {}
  for i, later in enumerate(rounds):
    for j, earlier in enumerate(rounds[:i]):
      found.setdefault(later - earlier, []).append(table["iou"][i][j])
  return {distance: float(np.mean(values)) for distance, values in sorted(found.items())}


def _read_mask(path: pathlib.Path) -> np.ndarray:
  try:
    mask = np.load(path, allow_pickle=False)
  except (OSError, EOFError, ValueError) as error:
    raise OSError(f"{path}: is damaged ({error}); remove it to go on without it") from error
  if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.ndim != 1:
    raise OSError(f"{path}: must hold a vector of uint8; remove it to go on without it")
  return mask
