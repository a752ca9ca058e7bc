"""The exact k-th largest magnitude without a sort, and the masks that follow from it.

A float's magnitude grows with its bit pattern read as an integer, sign bit dropped. So the k-th
largest magnitude is the largest pattern that at least k entries reach. On a CPU a bracket around it
is narrowed by counting how many entries reach each of three pivots. No copy is made, k may be
traced, and the counts of a pass are one fused reduction. (One pivot would read the data twice as
often; seven would compare more than the memory traffic they save.) The search in a large array
starts from a guess and ends when one candidate is left; in small arrays it takes as many passes as
the worst case needs. Accelerators, which would have to ask the host before every pass of a loop of
unknown length, find the pattern digit by digit: `ops.backend.digits`.

The tie rule, everywhere: what reaches the k-th magnitude is kept, so that ties with it are kept too
and a mask may hold more than k entries. Zeros are never kept by a mask: a kept zero could not be
told from a pruned one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sparsyfed_jax.ops.backend.choice import by_platform
from sparsyfed_jax.ops.backend.count import count_one, count_true
from sparsyfed_jax.ops.backend.digits import in_long_rows, kth_key, kth_key_of_rows, laid_out
from sparsyfed_jax.ops.share import num_kept

_PIVOTS_PER_PASS = 3
_SAMPLE_SIZE = 1024
_GUESS_DEVIATIONS = 3.0
_WORTH_A_SAMPLE = 100_000
_Search: TypeAlias = Callable[[Sequence[jax.Array], jax.Array], jax.Array]
_UNSIGNED = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


@jax.named_scope("thresholds")
def kth_magnitude(x: jax.Array, k: jax.Array | int) -> jax.Array:
  """Finds the k-th largest `|x|`, exactly.

  Args:
    x: float array of any shape, fewer than 2^31 entries; float64, float32, bfloat16 or float16. A
      NaN counts as larger than infinity.
    k: () integer, may be traced. k = 1 asks for the largest magnitude.

  Returns:
    () array of x's dtype: infinity where k < 1, 0 where k > x.size.

  Raises:
    AssertionError: k is not of rank 0.
    TypeError: x is not a float array.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> float(ops.kth_magnitude(jnp.array([3.0, -1.0, -4.0, 2.0]), 2))
    3.0
  """
  chex.assert_rank(k, 0)
  leaves, k = _checked([x]), jnp.asarray(k, jnp.int32)
  cpu = _find_large_on_cpu if _is_large(leaves) else _find_small_on_cpu
  key = by_platform(leaves, jnp.maximum(k, 1), cpu=cpu, gpu=_find_on_gpu, default=_find)
  magnitude = lax.bitcast_convert_type(key, x.dtype)
  return jnp.where(k < 1, jnp.asarray(jnp.inf, x.dtype), magnitude)


def is_at_least(x: jax.Array, threshold: jax.Array) -> jax.Array:
  """Compares `|x| >= threshold`, exact for subnormals too, which backends may flush to 0.

  Args:
    x: float array.
    threshold: array of x's dtype that broadcasts against x; not negative.

  Returns:
    Bool array.

  Raises:
    AssertionError: the dtypes differ.
    TypeError: x is not a float array.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.is_at_least(jnp.array([-3.0, 1.0]), jnp.array(2.0)).tolist()
    [True, False]
  """
  chex.assert_equal(x.dtype, threshold.dtype)
  return _keys(x) >= _keys(threshold)


def topk_mask(tree: Any, density: jax.Array | float) -> Any:
  """Marks the entries of largest magnitude over all leaves together.

  Args:
    tree: pytree of float arrays of one dtype.
    density: () share to keep, in [0, 1]; may be traced. The mask keeps `num_kept` of the entries,
      more where magnitudes tie, fewer where fewer are not 0.

  Returns:
    Pytree of bool arrays.

  Raises:
    AssertionError: the density is not of rank 0.
    TypeError: a leaf is not a float array, or the leaves differ in dtype.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> mask = ops.topk_mask({"a": jnp.array([3.0, -1.0]), "b": jnp.array([0.5, 2.0])}, 0.5)
    >>> mask["a"].tolist(), mask["b"].tolist()
    ([True, False], [False, True])
  """
  leaves, treedef = jax.tree.flatten(tree)
  if not leaves:
    return tree
  k = num_kept(sum(leaf.size for leaf in leaves), density)
  return jax.tree.unflatten(treedef, _mask_of(leaves, k))


def largest_mask(x: jax.Array, k: jax.Array | int) -> jax.Array:
  """Marks the k entries of largest magnitude of one array.

  Args:
    x: float array of any shape.
    k: () integer, may be traced; 0 or less marks nothing.

  Returns:
    Bool array like x: more than k entries where magnitudes tie, fewer where fewer are not 0.

  Raises:
    AssertionError: k is not of rank 0.
    TypeError: x is not a float array.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> ops.largest_mask(jnp.array([3.0, -1.0, 0.5, 2.0]), 1).tolist()
    [True, False, False, False]
  """
  chex.assert_rank(k, 0)
  return _mask_of([x], jnp.asarray(k, jnp.int32))[0]


def layerwise_mask(tree: Any, densities: Any) -> Any:
  """Marks the entries of largest magnitude in each leaf on its own.

  Args:
    tree: pytree of float arrays.
    densities: () share to keep of every leaf, or a pytree like `tree` of such shares.

  Returns:
    Pytree of bool arrays.

  Raises:
    AssertionError: a density is not of rank 0.
    TypeError: a leaf is not a float array.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> mask = ops.layerwise_mask({"a": jnp.array([3.0, -1.0]), "b": jnp.array([0.5, 2.0])}, 0.5)
    >>> mask["a"].tolist(), mask["b"].tolist()
    ([True, False], [False, True])
  """
  if jax.tree_util.all_leaves([densities]):
    densities = jax.tree.map(lambda _: densities, tree)
  return jax.tree.map(lambda leaf, density: topk_mask(leaf, density), tree, densities)


@jax.named_scope("thresholds")
def _mask_of(leaves: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
  leaves = _checked(leaves)
  cpu = _mark_large_on_cpu if _is_large(leaves) else _mark_small_on_cpu
  return by_platform(leaves, k, cpu=cpu, gpu=_mark_on_gpu, default=_mark)


def _mark(leaves: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
  # Behind a barrier: the compiler might compute the leaves anew for the search, and if they were
  # rounded differently then, the k-th entry would not reach itself.
  leaves = lax.optimization_barrier(leaves)
  least = _least_marked(list(map(_keys, laid_out(leaves))), k, kth_key)
  return [_keys(leaf) >= least for leaf in leaves]


def _mark_on_gpu(leaves: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
  leaves = lax.optimization_barrier(leaves)
  least = _least_marked(list(map(_keys, in_long_rows(leaves))), k, kth_key_of_rows)
  return [_keys(leaf) >= least for leaf in leaves]


def _mark_small_on_cpu(leaves: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
  keys = _flat_keys(leaves)
  return _like(leaves, _reach_once(keys, _least_marked(keys, k, _kth_key_in_all_passes)))


def _mark_large_on_cpu(leaves: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
  keys = _flat_keys(leaves)

  def mark_all() -> list[jax.Array]:
    return [leaf != 0 for leaf in keys]

  def mark_largest() -> list[jax.Array]:
    return _reach_once(keys, _least_marked(keys, k, _kth_key_from_a_guess))

  # A model that is already sparse mostly has no more entries than may be kept.
  masks = lax.cond(sum(map(count_one, mark_all())) <= k, mark_all, mark_largest)
  return _like(leaves, masks)


def _like(leaves: Sequence[jax.Array], masks: Sequence[jax.Array]) -> list[jax.Array]:
  return [mask.reshape(leaf.shape) for mask, leaf in zip(masks, leaves, strict=True)]


def _least_marked(keys: Sequence[jax.Array], k: jax.Array, search: _Search) -> jax.Array:
  least = jnp.maximum(search(keys, jnp.maximum(k, 1)), 1)  # zeros are never kept
  return jnp.where(k >= 1, least, _out_of_reach(keys))


def _reach_once(keys: Sequence[jax.Array], least: jax.Array) -> list[jax.Array]:
  # A loop of one iteration at most: like the search, it reads keys from memory, vmapped or not.
  # Otherwise the compiler may recompute them, and if their inputs are then rounded differently, the
  # k-th entry does not reach itself.
  beyond = _out_of_reach(keys)
  nothing = [jnp.zeros(leaf.shape, bool) for leaf in keys]
  return lax.while_loop(
    lambda state: state[0] < beyond,
    lambda state: (beyond, [leaf >= state[0] for leaf in keys]),
    (least, nothing),
  )[1]


def _checked(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  dtypes = {leaf.dtype for leaf in leaves}
  if len(dtypes) != 1:
    raise TypeError(f"the leaves must have one dtype, found {sorted(map(str, dtypes))}")
  _check_dtype(leaves[0])
  return list(map(lax.stop_gradient, leaves))


def _flat_keys(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  return [_keys(leaf).reshape(-1) for leaf in leaves]


def _is_large(leaves: Sequence[jax.Array]) -> bool:
  return sum(leaf.size for leaf in leaves) >= _WORTH_A_SAMPLE


def _find(leaves: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  return kth_key(list(map(_keys, laid_out(leaves))), k)


def _find_on_gpu(leaves: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  return kth_key_of_rows(list(map(_keys, in_long_rows(leaves))), k)


def _find_small_on_cpu(leaves: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  return _kth_key_in_all_passes(_flat_keys(leaves), k)


def _find_large_on_cpu(leaves: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  return _kth_key_from_a_guess(_flat_keys(leaves), k)


# Each search finds the k-th largest key of all arrays, for k of at least 1; 0 if there are fewer.
def _kth_key_from_a_guess(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  # Many arrays have fewer than k entries that are not 0: the first pass tells.
  pivots = jnp.stack([jnp.ones((), keys[0].dtype), *_guess(keys, k)])

  def refine(state: tuple[_Bracket, jax.Array]) -> tuple[_Bracket, jax.Array]:
    found = _narrow(*state, keys, k)
    return found, _pivots(found)

  found, _ = lax.while_loop(
    lambda state: ~_is_settled(state[0], k), refine, (_everything(keys), pivots)
  )
  # In a branch, which reads the keys from memory: otherwise the compiler recomputes them.
  is_narrow = found.high - found.low == 1
  return lax.cond(is_narrow, lambda: found.low, lambda: _key_within(found, keys, k))


def _kth_key_in_all_passes(keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  def refine(_: jax.Array, found: _Bracket) -> _Bracket:
    return _narrow(found, _pivots(found), keys, k)

  num_passes = -(-_num_bits(keys) // 2)  # each takes a quarter
  return lax.fori_loop(0, num_passes, refine, _everything(keys)).low


def _guess(keys: Sequence[jax.Array], k: jax.Array) -> list[jax.Array]:
  """Finds keys below and above the k-th one, probably, from a sample."""
  size = sum(leaf.size for leaf in keys)
  stride = size // _SAMPLE_SIZE
  sample = jnp.sort(jnp.concatenate([leaf[::stride] for leaf in keys]))
  expected = k.astype(jnp.float32) * (sample.size / size)
  deviation = _GUESS_DEVIATIONS * jnp.sqrt(expected) + 1
  ranks = jnp.stack([expected + deviation, expected - deviation])
  places = sample.size - jnp.clip(ranks, 1, sample.size).astype(jnp.int32)
  return list(jnp.maximum(sample[places], 1))


class _Bracket(NamedTuple):
  """At least k keys reach `low`, fewer reach `high`."""

  low: jax.Array
  high: jax.Array
  num_low: jax.Array  # how many reach `low`
  num_high: jax.Array


def _everything(keys: Sequence[jax.Array]) -> _Bracket:
  unsigned = keys[0].dtype
  return _Bracket(
    jnp.zeros((), unsigned),
    _out_of_reach(keys),
    jnp.int32(sum(leaf.size for leaf in keys)),
    jnp.int32(0),
  )


def _out_of_reach(keys: Sequence[jax.Array]) -> jax.Array:
  return jnp.asarray(2 ** _num_bits(keys), keys[0].dtype)


def _num_bits(keys: Sequence[jax.Array]) -> int:
  return jnp.iinfo(keys[0].dtype).bits - 1


def _is_settled(found: _Bracket, k: jax.Array) -> jax.Array:
  is_narrow = found.high - found.low == 1
  return is_narrow | (found.num_low == k) | (found.num_high == k - 1)


def _pivots(found: _Bracket) -> jax.Array:
  steps = jnp.arange(1, _PIVOTS_PER_PASS + 1, dtype=found.low.dtype)
  part = (found.high - found.low - 1) // (_PIVOTS_PER_PASS + 1) + 1
  return jnp.minimum(found.low + part * steps, found.high)


def _narrow(
  found: _Bracket, pivots: jax.Array, keys: Sequence[jax.Array], k: jax.Array
) -> _Bracket:
  by_leaf = [jnp.stack(count_true(*(leaf >= pivot for pivot in pivots))) for leaf in keys]
  counts = sum(by_leaf[1:], by_leaf[0])
  is_reached = counts >= k
  return _Bracket(
    jnp.max(jnp.where(is_reached, pivots, found.low)),
    jnp.min(jnp.where(is_reached, found.high, pivots)),
    jnp.min(jnp.where(is_reached, counts, found.num_low)),
    jnp.max(jnp.where(is_reached, found.num_high, counts)),
  )


def _key_within(found: _Bracket, keys: Sequence[jax.Array], k: jax.Array) -> jax.Array:
  """Finds the key that a settled bracket leaves: its least, or its largest."""
  limits = jnp.iinfo(found.low.dtype)
  ends = jnp.asarray(limits.max, limits.dtype), jnp.asarray(limits.min, limits.dtype)
  least, largest = ends
  for leaf in keys:
    above = jnp.where(leaf >= found.low, leaf, found.high)
    below = jnp.where(leaf < found.high, leaf, found.low)
    # Both at once: XLA's CPU backend vectorises a variadic reduction, unlike either alone.
    low, high = lax.reduce((above, below), ends, _least_and_largest, (0,))
    least, largest = jnp.minimum(least, low), jnp.maximum(largest, high)
  return jnp.where(found.num_low == k, least, largest)


def _least_and_largest(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
  return jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])


def _check_dtype(x: jax.Array) -> None:
  if not jnp.issubdtype(x.dtype, jnp.floating) or jnp.finfo(x.dtype).bits not in _UNSIGNED:
    raise TypeError(f"magnitudes are selected in float arrays of 16 to 64 bits, found {x.dtype}")


def _keys(x: jax.Array) -> jax.Array:
  _check_dtype(x)
  bits = jnp.finfo(x.dtype).bits
  unsigned = _UNSIGNED[bits]
  pattern = lax.bitcast_convert_type(lax.stop_gradient(x), unsigned)
  return pattern & jnp.asarray(2 ** (bits - 1) - 1, unsigned)
