"""Parameters as methods see them, whatever tree a model keeps them in.

Methods, masks, checkpoints and the wire know one form: a nested dict whose prunable leaves are
called `kernel`, as flax's are. A leaf at path P that is prunable stands at P, if its last name is
`kernel`, and else at P/kernel; one that is called `kernel` and is not prunable stands at P/plain.
The layer of a prunable leaf is the path to its `kernel`.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax

from sparsyfed_jax.trees import path_name
from sparsyfed_jax.types import Params

_KERNEL, _PLAIN = "kernel", "plain"


class Form(NamedTuple):
  """How the tree of a model and the nested dict belong together.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> own = [{"w": jnp.ones((2, 3)), "b": jnp.ones(3)}]
    >>> form = form_of(own, prunable=["0/w"])
    >>> form.layers
    {'0/w': '0/w'}
    >>> canonical = form.to_tree(own)
    >>> jax.tree.map(jnp.shape, canonical)
    {'0': {'b': (3,), 'w': {'kernel': (2, 3)}}}
    >>> jax.tree.map(jnp.shape, form.from_tree(canonical))
    [{'b': (3,), 'w': (2, 3)}]
  """

  treedef: Any  # of the model's own tree
  places: tuple[tuple[str, ...], ...]  # of its leaves, in the nested dict
  layers: dict[str, str]  # the layer of each prunable leaf, by the path of the leaf in its own tree

  def paths(self, collection: str) -> dict[tuple[str, ...], str]:
    """Lists the paths of the leaves in their own tree by their places in a collection."""
    own = jax.tree.unflatten(self.treedef, range(len(self.places)))
    flat, _ = jax.tree_util.tree_flatten_with_path(own)
    pairs = zip(self.places, flat, strict=True)
    return {(collection, *place): path_name(path) for place, (path, _) in pairs}

  def to_tree(self, own: Params) -> dict[str, Any]:
    """Makes the nested dict of the model's own tree."""
    nested: dict[str, Any] = {}
    for place, leaf in zip(self.places, self.treedef.flatten_up_to(own), strict=True):
      inner = nested
      for name in place[:-1]:
        inner = inner.setdefault(name, {})
      inner[place[-1]] = leaf
    return nested

  def from_tree(self, nested: Any) -> Params:
    """Makes the model's own tree of the nested dict."""
    leaves = []
    for place in self.places:
      inner = nested
      for name in place:
        inner = inner[name]
      leaves.append(inner)
    return jax.tree.unflatten(self.treedef, leaves)


def form_of(own: Params, prunable: Collection[str]) -> Form:
  """Finds the form of a tree.

  Args:
    own: a model's parameters, or their shapes.
    prunable: the paths of leaves that methods may prune.

  Raises:
    ValueError: two leaves would have one place, because keys such as 1 and "1" read alike.

  Example:
    >>> import jax.numpy as jnp
    >>> form_of({"Dense_0": {"kernel": jnp.ones((2, 3))}}, prunable=[]).places
    (('Dense_0', 'kernel', 'plain'),)
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(own)
  places, layers = [], {}
  for path, leaf in flat:
    names = tuple(path_name((entry,)) for entry in path)
    is_kernel = names[-1:] == (_KERNEL,)
    if path_name(path) in prunable:
      place = names if is_kernel else (*names, _KERNEL)
      layers[path_name(path)] = "/".join(place[:-1])
    else:
      place = (*names, _PLAIN) if is_kernel and leaf.ndim >= 2 else names or (_PLAIN,)
    places.append(place)
  if len(set(places)) < len(places):
    twice = next(place for place in places if places.count(place) > 1)
    raise ValueError(f"two parameters are called {'/'.join(twice)}: must have names of their own")
  return Form(treedef, tuple(places), layers)
