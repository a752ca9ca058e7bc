"""A model as methods train it: its layers known by name, and computing with given operations."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from sparsyfed_jax import trees
from sparsyfed_jax.models.form import Form, form_of
from sparsyfed_jax.models.libraries import Functions, functions_of
from sparsyfed_jax.ops import Layers, Product, layer_rule, rewrite_layers
from sparsyfed_jax.ops.rewrite import Survey, survey
from sparsyfed_jax.types import Key, Variables

_ROWS = 2  # of the batch that is traced to find layers
_Example: TypeAlias = tuple[tuple[int, ...], Any]  # shape and dtype


class Network(NamedTuple):
  """A model as pure functions on what methods train.

  Example:
    >>> from flax import linen as nn
    >>> network = network_of(nn.Dense(3), input_shape=(2,))
    >>> network.layer_names
    ('',)
  """

  title: str
  init: Callable[[Key], Variables]
  # (variables, x, valid, key, layers, train=...) -> outputs, all variables but the parameters
  apply: Callable[..., tuple[Any, Variables]]
  to_model: Callable[[Variables], Any]  # what a user of the model's library calls
  output_shape: tuple[int, ...]  # for a batch of `_ROWS`
  layer_names: tuple[str, ...]  # of layers whose operations can be replaced, in computing order
  kernels: tuple[str, ...]  # of the layers of prunable parameters
  problems: tuple[str, ...]  # why layers that a method would prune cannot be followed
  products: tuple[Product, ...]  # with parameters in a training step, where they can be found
  takes_valid: bool
  # The paths of variables in the trees of the model's own library, by their places in `Variables`.
  own_paths: Mapping[tuple[str, ...], str]


def network_of(
  model: Any, input_shape: tuple[int, ...], prunable: str = "", dtype: Any = jnp.float32
) -> Network:
  """Finds the layers of a model, and makes functions of it that compute with given ones.

  The layers are found and replaced by `ops.rewrite_layers`.

  Args:
    model: as in `functions_of`.
    input_shape: shape of one example.
    prunable: a regular expression, found in the paths of the parameters that methods may prune;
      by default those of at least two axes that are multiplied with the layers' input.
    dtype: of what the model takes: float32, or int32 of tokens.

  Raises:
    ValueError: the model is of another kind, or cannot be called on such an example, or nothing in
      it is called `prunable`.

  Example:
    >>> from flax import linen as nn
    >>> two = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
    >>> network_of(two, input_shape=(4,), prunable="layers_2").kernels
    ('layers_2',)
  """
  functions, example = functions_of(model, input_shape, dtype), (input_shape, dtype)
  key = jax.eval_shape(lambda: jax.random.key(0))
  try:
    params, state = jax.eval_shape(functions.init, key)
  except Exception as error:  # of code that is not ours
    raise ValueError(_told(functions, input_shape, error)) from error
  _check_parameters(functions.title, params)
  try:
    surveys = _surveys(functions, example, params, state)
  except Exception as error:  # of code that is not ours
    raise ValueError(_told(functions, input_shape, error)) from error
  if not hasattr(surveys[True].outputs[0], "shape"):
    kind = type(surveys[True].outputs[0]).__name__
    raise ValueError(f"{functions.title}: gives a {kind}, must give one array")
  return _rewritten(functions, surveys, params, state, prunable)


def _told(functions: Functions, input_shape: tuple[int, ...], error: Exception) -> str:
  reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
  return f"{functions.title}: must take examples of shape {input_shape} ({reason})"


def _check_parameters(title: str, params: Any) -> None:
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  if not flat:
    raise ValueError(f"{title}: the model has no parameters to train")
  for path, leaf in flat:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise ValueError(
        f"{title}: the parameter {trees.path_name(path)} has dtype {leaf.dtype}, must be of floats"
      )


def _surveys(
  functions: Functions, example: _Example, params: Any, state: Any
) -> dict[bool, Survey]:
  """Finds the layers in training (True), and in evaluation."""
  arguments = _arguments(example, state)
  return {
    train: survey(partial(functions.apply, train=train), params, *arguments, batch_axes=_AXES)
    for train in (True, False)
  }


def _rewritten(
  functions: Functions, surveys: dict[bool, Survey], params: Any, state: Any, prunable: str
) -> Network:
  products = surveys[True].products
  leaves = _prunable_leaves(functions.title, params, products, prunable)
  form = form_of(params, leaves)
  forms = {name: form_of(part, ()) for name, part in state.items()}
  replaced = {train: _replaceable(found.products) for train, found in surveys.items()}

  def init(key: Key) -> Variables:
    params, state = functions.init(key)
    return {"params": form.to_tree(params), **_collections(state)}

  def _collections(state: Any) -> dict[str, Any]:
    return {name: forms[name].to_tree(part) for name, part in state.items()}

  def own(variables: Variables) -> tuple[Any, Any]:
    state = {name: one.from_tree(variables[name]) for name, one in forms.items()}
    return form.from_tree(variables["params"]), state

  def apply(
    variables: Variables, x: jax.Array, valid: jax.Array, key: Key, layers: Layers, train: bool
  ) -> tuple[Any, Variables]:
    params, state = own(variables)
    run = rewrite_layers(
      partial(functions.apply, train=train),
      layer_rule(lambda path: layers(form.layers.get(path, path))),
      _AXES,
      replaced[train],
      custom="keep",
    )
    out, state = run(params, state, x, valid, key)
    return out, _collections(state)

  return Network(
    title=functions.title,
    init=init,
    apply=apply,
    to_model=lambda variables: functions.join(*own(variables)),
    output_shape=surveys[True].outputs[0].shape,
    layer_names=tuple(form.layers.get(path, path) for path in replaced[True]),
    kernels=tuple(trees.layer_names(form.to_tree(params))),
    problems=_problems(params, surveys[True], prunable),
    products=_named_by_layer(products, form),
    takes_valid=functions.takes_valid,
    own_paths={
      place: path
      for name, one in {"params": form, **forms}.items()
      for place, path in one.paths(name).items()
    },
  )


_AXES = (None, 0, 0, None)  # of the batch in what `_arguments` makes


def _arguments(example: _Example, state: Any) -> tuple[Any, ...]:
  x = _batch_of(example)
  valid = jax.ShapeDtypeStruct((_ROWS,), jnp.bool_)
  return state, x, valid, jax.eval_shape(lambda: jax.random.key(0))


def _batch_of(example: _Example) -> jax.ShapeDtypeStruct:
  shape, dtype = example
  return jax.ShapeDtypeStruct((_ROWS, *shape), dtype)


def _replaceable(products: Sequence[Product]) -> tuple[str, ...]:
  """Lists the paths of the parameters whose products can all be replaced, in computing order."""
  refused = {path for product in products if product.problem for path in product.leaves}
  paths = dict.fromkeys(path for product in products for path in product.leaves)
  return tuple(path for path in paths if path not in refused)


def _prunable_leaves(
  title: str, params: Any, products: Sequence[Product], prunable: str
) -> list[str]:
  """Lists the paths of the leaves that methods may prune."""
  used = set(_replaceable(products))
  is_chosen = trees.name_finder(prunable or "$")
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  large = [trees.path_name(path) for path, leaf in flat if leaf.ndim >= 2]
  if prunable and not any(map(is_chosen, large)):
    raise ValueError(
      f"prunable={prunable!r}: must find a parameter of {title} that has at least two axes:"
      f" {', '.join(large)}"
    )
  return [path for path in large if path in used and is_chosen(path)]


def _problems(params: Any, found: Survey, prunable: str) -> tuple[str, ...]:
  """Says which leaves a method that prunes would have to leave out, and why."""
  is_chosen = trees.name_finder(prunable or "$")
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  large = [trees.path_name(path) for path, leaf in flat if leaf.ndim >= 2]
  chosen = set(filter(is_chosen, large))
  told = [
    f"{product.path}: {product.problem}"
    for product in found.products
    if product.problem and not chosen.isdisjoint(product.leaves)
  ]
  used = {path for product in found.products for path in product.leaves}
  unused = set(found.unused)
  for path in large:
    if path in unused and path in chosen:
      told.append(f"{path}: the model's output does not depend on it; is another copy closed over?")
    elif prunable and path in chosen and path not in used:
      told.append(f"{path}: no product uses it")
  return tuple(dict.fromkeys(told))


def _named_by_layer(products: Sequence[Product], form: Form) -> tuple[Product, ...]:
  return tuple(
    product._replace(leaves=tuple(form.layers.get(path, path) for path in product.leaves))
    for product in products
  )
