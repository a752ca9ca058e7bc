"""Models of any library as two pure functions on their own trees of parameters.

What a model's `__call__` or `apply` takes by name decides what it is given: `train`, `training` or
`is_training`; `deterministic` or `inference`; `valid`, which rows of the batch are examples; `key`.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from sparsyfed_jax.ops import NATIVE, LayerOps
from sparsyfed_jax.types import Key, Params

_KINDS = (
  "{}: must be a flax.linen, flax.nnx or Equinox module, a function of a key that makes one, what"
  " haiku.transform gives, or a pair of functions (init, apply)"
)
State = Mapping[str, Any]  # what changes and is not trained, such as statistics of batches


class Functions(NamedTuple):
  """A model as pure functions.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from flax import linen as nn
    >>> functions = functions_of(nn.Dense(3), input_shape=(2,))
    >>> params, state = functions.init(jax.random.key(0))
    >>> x, valid = jnp.ones((4, 2)), jnp.ones(4, bool)
    >>> functions.apply(params, state, x, valid, jax.random.key(0), train=True)[0].shape
    (4, 3)
  """

  title: str
  init: Callable[[Key], tuple[Params, State]]
  # (params, state, x, valid, key, train=...) -> outputs, state
  apply: Callable[..., tuple[Any, State]]
  join: Callable[[Params, State], Any]  # what a user of the library would call
  takes_valid: bool  # whether rows that are padding can count for nothing inside the model


def functions_of(model: Any, input_shape: tuple[int, ...], dtype: Any = jnp.float32) -> Functions:
  """Makes pure functions of a model.

  Args:
    model: a flax.linen module; a flax.nnx or Equinox module, which starts from the weights it has
      (an Equinox model with state as the pair that `eqx.nn.make_with_state` gives); what
      `haiku.transform` gives, with state or without; or a pair of functions, `init(key)` and
      `apply(params, x)`. Equinox modules may be written for one example. A function of a key that
      makes an NNX or Equinox module starts from other weights with another key.
    input_shape: shape of one example.
    dtype: of what the model takes.

  Raises:
    ValueError: the model is of another kind.

  Example:
    >>> import jax.numpy as jnp
    >>> functions_of((lambda key: jnp.ones((2, 3)), lambda w, x: x @ w), (2,)).takes_valid
    False
  """
  example = jax.ShapeDtypeStruct(input_shape, dtype)
  if isinstance(model, nn.Module):
    return _linen(_with_own_operations(model), example)
  make = model if inspect.isfunction(model) or isinstance(model, partial) else None
  if make:
    model = _made(make)
  # Who brings a module of theirs has imported them.
  nnx, equinox = sys.modules.get("flax.nnx"), sys.modules.get("equinox")
  if nnx and isinstance(model, nnx.Module):
    return _nnx(nnx, model, make)
  if equinox and isinstance(model[0] if _is_pair(model) else model, equinox.Module):
    return _equinox(equinox, model, make, example)
  if _is_pair(model) and all(map(callable, model)):
    if type(model).__module__.startswith("haiku."):
      return _haiku(model, example)
    return _plain(model, example)
  raise ValueError(_KINDS.format(type(make or model).__name__))


def _with_own_operations(model: nn.Module) -> nn.Module:
  """Replaces the operations in a module's attribute `ops`, if it has one, by those of jax."""
  attributes: Any = model
  if isinstance(getattr(model, "ops", None), LayerOps):
    return attributes.clone(ops=NATIVE)
  return model


def _made(make: Callable[[Key], Any]) -> Any:
  try:
    return make(jax.random.key(0))
  except Exception as error:  # of code that is not ours
    raise ValueError(f"{_KINDS.format('function')}; called with a key: {_told(error)}") from error


def _told(error: Exception) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _is_pair(model: Any) -> bool:
  return isinstance(model, tuple) and len(model) == 2


def _one(example: jax.ShapeDtypeStruct, size: int = 1) -> jax.Array:
  return jnp.zeros((size, *example.shape), example.dtype)


def _arguments(call: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
  """Makes a function that picks what a call takes by name."""
  names = inspect.signature(call).parameters

  def pick(train: bool, valid: Any = None, key: Any = None) -> dict[str, Any]:
    known = dict.fromkeys(("train", "training", "is_training"), train)
    known |= dict.fromkeys(("deterministic", "inference"), not train)
    known |= {"valid": valid} | ({} if key is None else {"key": key})
    return {name: value for name, value in known.items() if name in names}

  return pick


def _takes_valid(pick: Callable[..., dict[str, Any]]) -> bool:
  return "valid" in pick(True)


def _linen(model: nn.Module, example: jax.ShapeDtypeStruct) -> Functions:
  pick = _arguments(type(model).__call__)

  def init(key: Key) -> tuple[Params, State]:
    variables = dict(model.init(key, _one(example), **pick(False)))
    return variables.pop("params", {}), variables

  def apply(
    params: Params, state: State, x: jax.Array, valid: jax.Array, key: Key, train: bool
  ) -> tuple[Any, State]:
    variables, given = {**state, "params": params}, pick(train, valid, key)
    if not train:
      return model.apply(variables, x, **given), state
    out, changed = model.apply(variables, x, **given, mutable=list(state), rngs={"dropout": key})
    return out, {**state, **changed}

  def join(params: Params, state: State) -> Any:
    return {**state, "params": params}

  return Functions(type(model).__name__, init, apply, join, _takes_valid(pick))


def _nnx(nnx: Any, model: Any, make: Callable[[Key], Any] | None) -> Functions:
  """Makes functions of an NNX module; its streams of random numbers follow the key of the call."""
  training, evaluating = nnx.clone(model), nnx.clone(model)
  training.train()
  evaluating.eval()
  pick = _arguments(type(model).__call__)

  graphs = {}
  for train, module in ((False, evaluating), (True, training)):
    graphs[train], params, rngs, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
  parts = params, rest
  start = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

  def merge(train: bool, params: Params, rest: Any, key: Key | None) -> Any:
    states = _like(parts[0], params), _like(parts[1], rest)
    return nnx.merge(graphs[train], states[0], _seeded(rngs, key), states[1])

  def init(key: Key) -> tuple[Params, State]:
    params, rest = start
    if make:
      _, params, _, rest = nnx.split(make(key), nnx.Param, nnx.RngState, ...)
      params, rest = nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
    return params, {"state": rest} if jax.tree.leaves(rest) else {}

  def apply(
    params: Params, state: State, x: jax.Array, valid: jax.Array, key: Key, train: bool
  ) -> tuple[Any, State]:
    module = merge(train, params, state.get("state", start[1]), key if train else None)
    out = module(x, **pick(train, valid, key))
    if not state:
      return out, state
    now = nnx.to_pure_dict(
      nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate)))
    )
    return out, {"state": now}

  def join(params: Params, state: State) -> Any:
    return merge(False, params, state.get("state", start[1]), None)

  return Functions(type(model).__name__, init, apply, join, _takes_valid(pick))


def _seeded(rngs: Any, key: Key | None) -> Any:
  """Seeds streams of random numbers."""
  if key is None:
    return rngs
  leaves, structure = jax.tree.flatten(rngs)
  for number, leaf in enumerate(leaves):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      own = jax.random.fold_in(key, number)
      leaves[number] = jax.random.split(own, leaf.shape) if leaf.shape else own
  return jax.tree.unflatten(structure, leaves)


def _like(tree: Any, other: Any) -> Any:
  """Puts the leaves of another tree into a tree; classes made in a function are new every time."""
  return jax.tree.unflatten(jax.tree.structure(tree), jax.tree.leaves(other))


def _equinox(
  equinox: Any, model: Any, make: Callable[[Key], Any] | None, example: jax.ShapeDtypeStruct
) -> Functions:
  """Makes functions of an Equinox module, mapped over examples if it is written for one."""
  module, memory = model if _is_pair(model) else (model, None)
  start, fixed = equinox.partition(module, equinox.is_inexact_array)
  quiet = equinox.partition(equinox.nn.inference_mode(module), equinox.is_inexact_array)[1]
  pick = _arguments(type(module).__call__)
  takes_key = inspect.signature(type(module).__call__).parameters.get("key")
  needs_key = takes_key is not None and takes_key.default is takes_key.empty

  def call(params: Params, memory: Any, x: Any, valid: Any, key: Any, train: bool) -> Any:
    given = pick(train, valid, key if train or needs_key else None)
    whole = equinox.combine(params, fixed if train else quiet)
    return whole(x, **given) if memory is None else whole(x, memory, **given)

  def mapped(params: Params, memory: Any, x: Any, valid: Any, key: Any, train: bool) -> Any:
    keys = jax.random.split(key, x.shape[0]) if takes_key and (train or needs_key) else None
    axes: Any = (0, None if keys is None else 0)
    run = lambda x, key: call(params, memory, x, None, key, train)  # noqa: E731
    out_axes = 0 if memory is None else (0, None)
    return jax.vmap(run, axes, out_axes, axis_name="batch")(x, keys)

  def is_for_one() -> bool:
    key = jax.random.key(0)
    alone = partial(call, valid=None, key=key, train=False)
    try:
      out = jax.eval_shape(lambda x: alone(start, memory, x), example)
    except Exception as error:  # of code that is written for batches, or cannot take such examples
      batch = jax.ShapeDtypeStruct((2, *example.shape), example.dtype)
      valid = jnp.ones(2, bool)
      try:
        jax.eval_shape(lambda x: call(start, memory, x, valid, key, False), batch)
      except Exception:
        raise ValueError(
          f"{type(module).__name__}: must take an example of shape {example.shape}, or a batch of"
          f" them ({_told(error)})"
        ) from error
      return False
    is_of_tokens = jnp.issubdtype(example.dtype, jnp.integer)  # logits of each
    return (out if memory is None else out[0]).ndim == 1 + is_of_tokens

  compute = mapped if memory is not None or is_for_one() else call

  def init(key: Key) -> tuple[Params, State]:
    if make is None:
      return start, {} if memory is None else {"state": memory}
    module, now = made if _is_pair(made := make(key)) else (made, None)
    params = _like(start, equinox.filter(module, equinox.is_inexact_array))
    return params, {} if memory is None else {"state": _like(memory, now)}

  def apply(
    params: Params, state: State, x: jax.Array, valid: jax.Array, key: Key, train: bool
  ) -> tuple[Any, State]:
    if memory is None:
      return compute(params, None, x, valid, key, train), state
    out, now = compute(params, state["state"], x, valid, key, train)
    return out, {"state": now}

  def join(params: Params, state: State) -> Any:
    whole = equinox.combine(params, quiet)
    return whole if memory is None else (whole, state["state"])

  is_told = compute is call and _takes_valid(pick)
  return Functions(type(module).__name__, init, apply, join, is_told)


def _haiku(model: Any, example: jax.ShapeDtypeStruct) -> Functions:
  has_state = type(model).__name__ == "TransformedWithState"
  names = list(inspect.signature(model.apply).parameters)
  has_key = "rng" in names[1:3]
  pick = _arguments(model.apply)

  def init(key: Key) -> tuple[Params, State]:
    made = model.init(key, _one(example), **pick(True))  # batch norm starts in training alone
    return (made[0], {"state": made[1]} if made[1] else {}) if has_state else (made, {})

  def apply(
    params: Params, state: State, x: jax.Array, valid: jax.Array, key: Key, train: bool
  ) -> tuple[Any, State]:
    kept = (state.get("state", {}),) if has_state else ()
    keys = (key if train else None,) if has_key else ()
    out = model.apply(params, *kept, *keys, x, **pick(train, valid))
    if not has_state:
      return out, state
    return out[0], {"state": out[1]} if state else state

  def join(params: Params, state: State) -> Any:
    return (params, state.get("state", {})) if has_state else params

  return Functions("haiku.Transformed", init, apply, join, _takes_valid(pick))


def _plain(model: Any, example: jax.ShapeDtypeStruct) -> Functions:
  start, call = model
  pick = _arguments(call)
  parameters = inspect.signature(start).parameters.values()
  needed = [one for one in parameters if one.default is one.empty and one.kind != one.VAR_KEYWORD]
  first = (_one(example),) if len(needed) > 1 else ()

  def init(key: Key) -> tuple[Params, State]:
    return start(key, *first), {}

  def apply(
    params: Params, state: State, x: jax.Array, valid: jax.Array, key: Key, train: bool
  ) -> tuple[Any, State]:
    return call(params, x, **pick(train, valid, key)), state

  return Functions("(init, apply)", init, apply, lambda params, state: params, _takes_valid(pick))
