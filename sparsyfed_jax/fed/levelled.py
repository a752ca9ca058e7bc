"""Uploads in 8 or 4 bits a value, of any method, with or without error feedback."""

from typing import Any

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.fed.algorithm import Algorithm, no_memory
from sparsyfed_jax.fed.hyper import Hyper
from sparsyfed_jax.types import ClientData, Key, Memory, Metrics, Params, Variables
from sparsyfed_jax.wire.rounding import LEVEL_BITS, round_to_levels

_USE = 2**31 - 2  # of a client's key, which folds in small numbers for all else


def with_levels(algorithm: Algorithm, wire_dtype: Any, has_feedback: bool = False) -> Algorithm:
  """Makes clients round what they upload to levels, at random and without bias.

  The levels are fixed by an array's ends, so the client's weight, by which uploads are multiplied,
  moves them and changes no number. All float32 leaves of at least two axes are rounded.

  With feedback a client keeps what rounding took from its parameters, and adds it where it sends
  the same ones again: Seide et al., Interspeech 2014; Karimireddy et al., Error feedback fixes
  SignSGD and other gradient compression schemes, ICML 2019, arXiv 1901.09847.

  Args:
    algorithm: any; it is returned as it is for other dtypes than int8 and int4.
    wire_dtype: of uploads.
    has_feedback: whether clients keep the error, in as much memory as they have parameters.

  Raises:
    ValueError: clients keep something between rounds already, or feedback without levels.

  Example:
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> task = sf.classification(sf.models.MLP(10), data)
    >>> run = sf.simulate(sf.topk(), task, sf.data.iid(data), wire_dtype="int8", wire_feedback=True)
    >>> [leaf.shape for leaf in run.init().memories]
    [(100, 64, 128), (100, 128, 64), (100, 64, 10)]
  """
  num_bits = LEVEL_BITS.get(jnp.dtype(wire_dtype).name)
  if num_bits is None:
    if has_feedback:
      raise ValueError("wire_feedback=True: needs wire_dtype int8 or int4")
    return algorithm
  if algorithm.memory is not no_memory:
    raise ValueError(
      f"wire_dtype={jnp.dtype(wire_dtype).name!r}: must be float32, bfloat16 or float16 with this"
      " method, whose clients keep between rounds what they have sent, unrounded"
    )

  def client(
    download: Any, memory: Memory, data: ClientData, key: Key
  ) -> tuple[Any, Memory, Metrics]:
    upload, _, metrics = algorithm.client(download, (), data, key)
    exact = _kernels(upload.variables["params"])
    if has_feedback:
      exact = [_plus(leaf, rest) for leaf, rest in zip(exact, memory, strict=True)]
      upload = upload._replace(variables=_with(upload.variables, exact))
    upload = round_to_levels(upload, num_bits, jax.random.fold_in(key, _USE))
    if has_feedback:
      sent = _kernels(upload.variables["params"])
      triples = zip(exact, sent, memory, strict=True)
      memory = [jnp.where(there != 0, there - here, rest) for there, here, rest in triples]
    return upload, memory, metrics

  return algorithm._replace(client=client, memory=_no_rest if has_feedback else no_memory)


def _no_rest(variables: Variables, hyper: Hyper) -> list[jax.Array]:
  return [jnp.zeros_like(leaf) for leaf in _kernels(trees.widened(variables["params"]))]


def _plus(leaf: jax.Array, rest: jax.Array) -> jax.Array:
  """Adds what is left over where something is sent, and makes no zero there."""
  both = leaf + rest
  return jnp.where((leaf != 0) & (both != 0), both, leaf)


def _kernels(params: Params) -> list[jax.Array]:
  return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]


def _with(variables: Variables, kernels: list[jax.Array]) -> Variables:
  found = iter(kernels)
  params = jax.tree.map(lambda leaf: next(found) if leaf.ndim > 1 else leaf, variables["params"])
  return {**variables, "params": params}
