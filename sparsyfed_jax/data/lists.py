"""Whose examples are whose, as one array of indices ordered by client, and where each list begins.

Nothing is padded to the largest client, so a million clients of whom one is large take the memory
of their indices.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sparsyfed_jax.data.checks import check_at_least

_MOST = 2**31 - 1  # indices that int32 can count


class Parts(Sequence[np.ndarray]):
  """The indices of the examples of each client: a sequence of views of one array.

  Attributes:
    indices: (num_indices,) int32.
    starts: (num_clients,) int32, where in `indices` the list of each client begins.
    sizes: (num_clients,) int32, how long it is.

  Example:
    >>> import numpy as np
    >>> parts = Parts(np.array([4, 7, 2]), np.array([2, 0, 1]))
    >>> list(map(np.ndarray.tolist, parts))
    [[4, 7], [], [2]]
  """

  def __init__(self, indices: np.ndarray, sizes: np.ndarray, starts: np.ndarray | None = None):
    """Holds one list after the other.

    Args:
      indices: (num_indices,) integers.
      sizes: (num_clients,) integers.
      starts: (num_clients,) integers; by default each list begins where the one before ends.

    Raises:
      ValueError: there are more indices than int32 can count.
    """
    if len(indices) > _MOST:
      raise ValueError(f"parts: hold {len(indices)} indices, must be at most {_MOST}")
    ends = np.cumsum(sizes, dtype=np.int64)
    self.indices = np.asarray(indices, np.int32)
    self.sizes = np.asarray(sizes, np.int32)
    self.starts = np.asarray(ends - sizes if starts is None else starts, np.int32)

  def __len__(self) -> int:
    return len(self.sizes)

  def __getitem__(self, place: Any) -> Any:
    if isinstance(place, slice):
      return [self[number] for number in range(*place.indices(len(self)))]
    start = self.starts[place]
    return self.indices[start : start + self.sizes[place]]


def join_clients(parts: Sequence[np.ndarray]) -> Parts:
  """Puts the index arrays of a split one after the other, the form a round gathers from.

  Args:
    parts: one index array per client, at least one client.

  Raises:
    ValueError: a part is no vector of whole numbers; a mask would be indices 0 and 1.
  """
  check_at_least("len(parts)", len(parts), 1)
  if isinstance(parts, Parts):
    return parts
  arrays = [np.asarray(part) for part in parts]
  for number, part in enumerate(arrays):
    if part.ndim != 1 or (part.size and part.dtype.kind not in "iu"):
      raise ValueError(
        f"parts[{number}]: must be a vector of indices, is {part.dtype} of shape {part.shape};"
        " np.flatnonzero makes one of a mask"
      )
  sizes = np.array([len(part) for part in arrays])
  indices = np.empty(sizes.sum(), np.int32)
  np.concatenate([part for part in arrays if part.size] or [indices], out=indices, casting="unsafe")
  return Parts(indices, sizes)


def join_phases(before: Parts, after: Parts) -> tuple[Parts, Parts]:
  """Lets two splits be of one array of indices, so that one can take the place of the other."""
  indices = np.concatenate([before.indices, after.indices])
  return (
    Parts(indices, before.sizes, before.starts),
    Parts(indices, after.sizes, after.starts + np.int64(len(before.indices))),
  )


def group(owners: np.ndarray, num_clients: int) -> Parts:
  """Groups examples by their clients, each list ascending.

  Args:
    owners: (n,) integers in [0, num_clients), the client of each example.
    num_clients: how many lists there are.
  """
  sizes = np.bincount(owners, minlength=num_clients)
  return Parts(np.argsort(owners, kind="stable").astype(np.int32), sizes)


def sizes_of(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Counts the examples of each client; (num_clients,) int32."""
  if isinstance(parts, Parts):
    return parts.sizes
  return np.array([len(part) for part in parts], np.int32)


def rows_of_clients(parts: Any, numbers: Iterable[int]) -> np.ndarray:
  """Puts the lists of some clients one after the other; int32.

  Args:
    parts: anything with `indices`, `starts` and `sizes`, such as `Parts` or a `Federation`.
    numbers: of the clients.
  """
  numbers = np.asarray(numbers, np.int64)
  sizes = parts.sizes[numbers].astype(np.int64)
  ends = np.cumsum(sizes)
  shifts = parts.starts[numbers] - (ends - sizes)
  places = np.repeat(shifts, sizes)
  places += np.arange(len(places))
  return parts.indices[places]
