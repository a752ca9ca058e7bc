"""Where the batch is in an array."""

from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp


class Rows(NamedTuple):
  """The axis along which examples lie: entry i belongs to example (i // after) % size.

  The default is the first axis, an entry an example. Where axes were merged, (time, batch) in one
  has the batch on that axis too, and (batch, time) in one has `after` entries an example.

  Example:
    >>> Rows(axis=1)  # (time, batch, features)
    Rows(axis=1, after=1, size=None)
  """

  axis: int = 0
  after: int = 1
  size: int | None = None  # examples of the batch; None where only its array tells


class Unknown(NamedTuple):
  """That nobody can tell any more which entry belongs to which example.

  Example:
    >>> Unknown("gather")
    Unknown(primitive='gather')
  """

  primitive: str  # after which


# None is for an array that is the same for all examples, such as a table of positions.
Where: TypeAlias = Rows | Unknown | None
# The usual place of the batch: an entry of the first axis is an example.
FIRST_AXIS = Rows()


def of_examples(valid: jax.Array, shape: tuple[int, ...], rows: Where) -> jax.Array | None:
  """Tells for the entries of an array whether they belong to valid examples.

  Args:
    valid: (batch,) bool.
    shape: of the array.
    rows: where the batch is in it.

  Returns:
    bool array that broadcasts against `shape`, as long as it along one axis; None for an array that
    is the same for all examples.

  Raises:
    ValueError: nobody knows where the batch is.
    AssertionError: the axis does not hold the examples of `valid`.

  Example:
    >>> import jax.numpy as jnp
    >>> of_examples(jnp.array([True, False]), (3, 2), Rows(axis=1)).tolist()
    [[True, False]]
  """
  if rows is None:
    return None
  if isinstance(rows, Unknown):
    raise ValueError(f"which entries belong to which example is not known after {rows.primitive}")
  chex.assert_rank(valid, 1)
  whole, length = valid.shape[0] * rows.after, shape[rows.axis]
  is_right = length == whole if rows.size is None else length % whole == 0
  if rows.size not in (None, valid.shape[0]) or not is_right:
    raise AssertionError(f"{rows} of shape {shape} does not fit {valid.shape[0]} examples")
  if rows.after > 1:
    valid = jnp.repeat(valid, rows.after)
  if length > valid.shape[0]:
    valid = jnp.tile(valid, length // valid.shape[0])
  return valid.reshape([length if axis == rows.axis else 1 for axis in range(len(shape))])
