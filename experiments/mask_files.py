"""The global masks of a run, kept now and then, and how alike they are.

`masks/round-000010.npy` holds the mask after round 10, eight prunable parameters a byte.
`mask_similarity.json` holds the intersection over union of each two of them.
"""

import os
import pathlib

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
  """Compares each two masks that were kept, if there are any."""
  paths = sorted((directory / MASKS_NAME).glob("round-*.npy"))
  if not paths:
    return
  masks = [np.load(path) for path in paths]
  iou = np.ones((len(masks), len(masks)))
  for i, first in enumerate(masks):
    for j, second in enumerate(masks[:i]):
      either = int(np.bitwise_count(first | second).sum())
      both = int(np.bitwise_count(first & second).sum())
      iou[i, j] = iou[j, i] = both / either if either else 1.0
  rounds = [int(path.stem.removeprefix("round-")) for path in paths]
  write_json(directory / SIMILARITY_NAME, {"rounds": rounds, "iou": iou})
