"""Tasks that start from weights of another place, some of which may stay as they are."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.ops import PLAIN, LayerOps, Layers
from sparsyfed_jax.types import Batch, Key, Metrics, Params, Variables

_PARAMS = "params"
_NUM_TOLD = 8  # of the paths of each kind that an error lists


class _Leaf(NamedTuple):
  """A variable of the model."""

  place: tuple[str, ...]  # among the variables that methods see, its collection first
  path: str  # in the model's own tree of that collection
  like: Any  # of its shape and dtype

  @property
  def is_param(self) -> bool:
    return self.place[0] == _PARAMS

  def names(self) -> Iterable[str]:
    """Lists what it may be called in a table of weights, the fullest name first."""
    inside = "/".join(self.place[1:])
    # Its place in a run of the same model where it was prunable, or not; see `models.form`.
    is_kernel = _slashed(self.path).rpartition("/")[2] == "kernel"
    other = f"{self.path}/{'plain' if is_kernel else 'kernel'}"
    collection = self.place[0]
    for name in (
      f"{collection}/{self.path}",
      "/".join(self.place),
      self.path,
      inside,
      f"{collection}/{other}",
      other,
    ):
      yield _slashed(name)
      yield f"{_slashed(name)}/value"  # as the variables of flax.nnx are saved
    # As runs have them that were told otherwise what is prunable; see `models.Form`.
    own = f"{self.place[0]}/{_slashed(self.path)}"
    yield f"{own}/plain" if own.endswith("/kernel") else f"{own}/kernel"


def with_weights(task: Task, weights: Any, exclude: str = "", freeze: str = "") -> Task:
  """Makes a task that starts from given weights in place of drawn ones.

  The weights are those with which the model predicts: what a method trains in their place, as
  SparsyFed does, follows from them, and a method that trains inside masks begins with the largest.
  What is frozen is a constant: methods do not see it, so it is not trained, pruned or sent, and
  counts neither as a parameter nor as bytes.

  Args:
    task: as `classification` makes it.
    weights: nested dicts of arrays, such as `load_model(...).variables` or `run.model(state)`; a
      flax.nnx or Equinox module; or arrays by their paths (`params/Dense_0/kernel`,
      `Dense_0.kernel`). Paths are those of the model's own tree.
    exclude: a regular expression, found in the paths of what is left as it is drawn, whatever the
      weights have there; empty for none.
    freeze: a regular expression, found in the paths of the parameters that stay as they are given;
      empty for none.

  Returns:
    The task. Variables that are no parameters, such as running statistics, and that the weights
    lack start as usual, which a remark says.

  Raises:
    ValueError: a parameter is missing, or of another shape, or the weights have more than the model
      does, or what is not finite; or a pattern finds nothing, or all. The message is one line.

  Example:
    >>> import jax
    >>> import sparsyfed_jax as sf
    >>> data = sf.data.digits()
    >>> model = sf.models.MLP(10, hidden=(8,))
    >>> task = sf.classification(model, data)
    >>> weights = model.init(jax.random.key(1), data.x_test[:1])
    >>> head = sf.with_weights(task, weights, freeze="Dense_0")
    >>> run = sf.simulate(sf.topk(sparsity=0.5), head, sf.data.iid(data))
    >>> run.algorithm.broadcast(run.init().server).variables["params"].keys()
    dict_keys(['Dense_1'])
    >>> sf.with_weights(task, weights["params"]["Dense_0"])
    Traceback (most recent call last):
    ValueError: the weights do not fit the model: missing Dense_0/bias, Dense_0/kernel, ...
  """
  leaves = _leaves_of(task)
  given = _match(leaves, _table_of(weights), exclude)
  absent = [leaf for leaf in leaves if leaf.place not in given and not _finds(exclude, leaf)]
  remarks = (*task.remarks, *_remarks(absent))

  def init(key: Key) -> Variables:
    return _put(task.init(key), _held(given))

  started = task._replace(init=init, remarks=remarks, is_given=True)
  return _frozen(started, leaves, exclude, freeze, given) if freeze else started


def _leaves_of(task: Task) -> list[_Leaf]:
  shapes = jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0)))
  flat = jax.tree_util.tree_flatten_with_path(dict(shapes))[0]
  own = task.own_paths or {}
  leaves = []
  for path, like in flat:
    place = tuple(trees.path_name((entry,)) for entry in path)
    leaves.append(_Leaf(place, own.get(place, "/".join(place[1:])), like))
  return leaves


def _slashed(name: str) -> str:
  return name.replace(".", "/")


def _finds(pattern: str, leaf: _Leaf) -> bool:
  return trees.name_finder(pattern)(leaf.path)


def _table_of(weights: Any) -> dict[str, Any]:
  """Lists arrays by their paths."""
  nnx = sys.modules.get("flax.nnx")
  if nnx and isinstance(weights, nnx.Module):
    weights = nnx.state(weights, nnx.Not(nnx.RngState))
  flat = jax.tree_util.tree_flatten_with_path(weights)[0]
  table = {
    _slashed(trees.path_name(path)): leaf
    for path, leaf in flat
    if hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  }
  if not table:
    raise ValueError(f"the weights hold no arrays: must be a tree of them, are {str(weights)[:60]}")
  return table


def _match(
  leaves: Sequence[_Leaf], table: Mapping[str, Any], exclude: str
) -> dict[tuple[str, ...], np.ndarray]:
  """Finds the values of variables by their places; raises ValueError."""
  is_excluded = trees.name_finder(exclude)
  found, used = {}, set()
  missing, wrong = [], []
  for leaf in leaves:
    name = next((name for name in leaf.names() if name in table and name not in used), None)
    used |= {name} if name else set()
    if is_excluded(leaf.path):
      continue
    if name is None:
      missing += [leaf.path] if leaf.is_param else []
    elif reason := _fault_of(table[name], leaf.like):
      wrong.append(f"{leaf.path} is {reason}")
    else:
      found[leaf.place] = np.asarray(table[name]).astype(leaf.like.dtype)
  # Without the collection, as patterns and paths are.
  rest = {name: name.removeprefix(f"{_PARAMS}/") for name in table if name not in used}
  over = [path for path in rest.values() if not is_excluded(path)]
  params = [leaf for leaf in leaves if leaf.is_param]
  if exclude and not any(map(is_excluded, (*(leaf.path for leaf in leaves), *rest.values()))):
    raise ValueError(f"exclude={exclude!r}: must find a parameter: {_listed(params)}")
  faults = [
    f"{what} {_listed(names)}"
    for what, names in (("missing", missing), ("over", over), ("different:", wrong))
    if names
  ]
  if faults:
    raise ValueError(f"the weights do not fit the model: {'; '.join(faults)}")
  if not any(leaf.place in found for leaf in params):
    raise ValueError(f"exclude={exclude!r}: must leave a parameter to be taken")
  return found


def _fault_of(value: Any, like: Any) -> str:
  """Says how an array differs from what is needed, and what that is; "" if it does not."""
  if tuple(value.shape) != like.shape:
    return f"{tuple(value.shape)}, must be {like.shape}"
  is_float = jnp.issubdtype(like.dtype, jnp.floating)
  if is_float != jnp.issubdtype(value.dtype, jnp.floating):
    return f"of {value.dtype}, must be of {like.dtype}"
  if is_float and not np.all(np.isfinite(np.asarray(value).astype(np.float32))):
    return "not finite, must be"
  return ""


def _listed(names: Sequence[Any]) -> str:
  shown = [one.path if isinstance(one, _Leaf) else one for one in names]
  more = len(shown) - _NUM_TOLD
  return ", ".join(shown[:_NUM_TOLD]) + (f" and {more} more" if more > 0 else "")


def _remarks(absent: Sequence[_Leaf]) -> tuple[str, ...]:
  if not absent:
    return ()
  kinds = ", ".join(dict.fromkeys(leaf.place[0] for leaf in absent))
  return (f"the weights have no {kinds} of {_listed(absent)}: they start as those of a new model",)


def _held(constants: Mapping[tuple[str, ...], np.ndarray]) -> dict[tuple[str, ...], jax.Array]:
  """Makes constants of a program; XLA computes nothing with them while it compiles."""
  held = lax.optimization_barrier([jnp.asarray(value) for value in constants.values()])
  return dict(zip(constants, held, strict=True))


def _put(tree: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
  """Puts values in their places."""

  def choose(path: tuple[Any, ...], leaf: Any) -> Any:
    return values.get(tuple(trees.path_name((entry,)) for entry in path), leaf)

  return jax.tree_util.tree_map_with_path(choose, tree)


def _frozen(
  task: Task,
  leaves: Sequence[_Leaf],
  exclude: str,
  freeze: str,
  given: Mapping[tuple[str, ...], np.ndarray],
) -> Task:
  """Takes the parameters that a pattern finds out of those that methods see."""
  params = [leaf for leaf in leaves if leaf.is_param]
  held = [leaf for leaf in params if _finds(freeze, leaf)]
  drawn = [leaf for leaf in held if _finds(exclude, leaf)]
  if not held:
    raise ValueError(f"freeze={freeze!r}: must find a parameter: {_listed(params)}")
  if drawn:
    raise ValueError(
      f"freeze={freeze!r}: must find none of what exclude={exclude!r} leaves as it is drawn, finds"
      f" {_listed(drawn)}"
    )
  if len(held) == len(params):
    raise ValueError(f"freeze={freeze!r}: must leave a parameter to be trained")
  constants = {leaf.place[1:]: given[leaf.place] for leaf in held}
  layers = {"/".join(place[:-1]) for place, leaf in constants.items() if _is_kernel(place, leaf)}

  def complete(variables: Variables) -> Variables:
    return {**variables, _PARAMS: _joined(variables[_PARAMS], _held(constants))}

  def init(key: Key) -> Variables:
    variables = task.init(key)
    return {**variables, _PARAMS: _without(variables[_PARAMS], set(constants))}

  def loss(
    variables: Variables, batch: Batch, ops_of: Layers, key: Key
  ) -> tuple[jax.Array, tuple[Variables, Metrics]]:
    def layer(name: str) -> LayerOps:
      return PLAIN if name in layers else ops_of(name)

    return task.loss(complete(variables), batch, layer, key)

  def completed(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda variables, *others: fn(complete(variables), *others)

  paths = {leaf.path for leaf in held}
  return task._replace(
    init=init,
    loss=loss,
    evaluate=completed(task.evaluate),
    score_each=completed(task.score_each),
    predict=completed(task.predict) if task.predict else None,
    to_model=completed(task.to_model),
    complete=complete,
    frozen=tuple("/".join(place) for place in constants),
    kernels=task.kernels and tuple(name for name in task.kernels if name not in layers),
    problems=tuple(told for told in task.problems if not paths >= _paths_in(told)),
  )


def _paths_in(problem: str) -> set[str]:
  """Reads of which parameters a problem of `Task.problems` tells."""
  return set(problem.partition(": ")[0].split(", "))


def _is_kernel(place: tuple[str, ...], leaf: Any) -> bool:
  return trees.is_prunable((jax.tree_util.DictKey(place[-1]),), leaf)


def _without(params: Params, places: set[tuple[str, ...]], inside: tuple[str, ...] = ()) -> Any:
  """Leaves out what is at some places, and dicts that become empty."""
  kept: dict[str, Any] = {}
  for name, part in params.items():
    here = (*inside, name)
    if here not in places:
      part = _without(part, places, here) if isinstance(part, Mapping) else part
      kept |= {} if isinstance(part, dict) and not part else {name: part}
  return kept


def _joined(params: Params, values: Mapping[tuple[str, ...], Any]) -> Params:
  """Adds values at their places to nested dicts, in place of what may be there."""
  joined = {
    name: _joined(part, {}) if isinstance(part, Mapping) else part for name, part in params.items()
  }
  for place, value in values.items():
    inner = joined
    for name in place[:-1]:
      inner = inner.setdefault(name, {})
    inner[place[-1]] = value
  return joined
