"""What a reader keeps of the examples it has read: all of them, or where to read them again."""

from collections.abc import Callable

import numpy as np

from sparsyfed_jax.data.rows import Examples, Rows


class Kept:
  """Collects examples piece by piece, such as a client's at a time.

  Attributes:
    entry: the shape of an example, of the first piece; () before there is one.
    sizes: of the pieces, in examples.

  Example:
    >>> import numpy as np
    >>> pieces = np.eye(2), np.ones((1, 2))
    >>> kept = Kept(in_place=True)
    >>> for piece in pieces:
    ...   kept.add(piece)
    >>> kept.examples(lambda piece, rows: pieces[piece][rows])[[2]]
    array([[1., 1.]])
  """

  def __init__(self, in_place: bool):
    """Keeps the arrays themselves unless they stay in place."""
    self._in_place = in_place
    self._arrays: list[np.ndarray] = []
    self._dtype = np.dtype(np.bool_)
    self.entry: tuple[int, ...] = ()
    self.sizes: list[int] = []

  def add(self, x: np.ndarray) -> None:
    """Adds a piece, `(n, *entry)`, which was checked."""
    if not self.sizes:
      self.entry, self._dtype = x.shape[1:], x.dtype
    self._dtype = np.promote_types(self._dtype, x.dtype)
    self.sizes.append(len(x))
    if not self._in_place:
      self._arrays.append(x)

  def examples(
    self,
    read: Callable[[int, np.ndarray], np.ndarray],
    release: Callable[[], None] = lambda: None,
  ) -> Examples:
    """Makes one array of all pieces, or `Rows` of those in their places.

    Args:
      read: reads rows of a piece again, as `Rows` has it.
      release: as `Rows` has it.
    """
    if self._in_place:
      return Rows(self.sizes, self.entry, self._dtype, read, release)
    return np.concatenate(self._arrays)
