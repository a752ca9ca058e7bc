"""Which channels the parameters of a model belong to, so that it can be made narrower.

Channel c of a layer with n of them stands at the share c / n, and a model of width r has those that
stand below r: the first ceil(r n). An entry of a kernel has an input and an output channel and is
there if both are. The first layer has all inputs, and the last one all outputs.

Axes are those of the products of a training step. A layer's inputs are the outputs of the layer
before, or of an earlier one with as many, as where blocks have shortcuts. Where images are
flattened between a convolution and a dense layer, the inputs of one channel lie where the
convolution's layout puts them: with channels last, each n-th entry. So models are chains of dense
layers and convolutions, with batch norm and shortcuts. What mixes channels (group and layer norm,
attention, recurrence) is refused.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax import trees
from sparsyfed_jax.fed.task import Task
from sparsyfed_jax.ops import Product
from sparsyfed_jax.types import Variables


class Place(NamedTuple):
  """Where the entries of a leaf stand."""

  shape: tuple[int, ...]
  shares: tuple[np.ndarray, ...]  # float32, each along one axis, that of inputs or of outputs
  is_hidden: bool = False  # whether it belongs to a layer before the last
  labels: int | None = None  # the axis of the model's outputs, in the last layer

  def mask(self, width: jax.Array, has_label: jax.Array | None = None) -> jax.Array:
    """Marks what a model of a width has; bool like the leaf.

    Args:
      width: () float32 in (0, 1].
      has_label: (num_outputs,) bool, which outputs it has; all by default.
    """
    mask = jnp.ones((1,) * len(self.shape), bool)
    for shares in self.shares:
      mask &= jnp.asarray(shares) < width
    if self.labels is not None and has_label is not None:
      sides = [1] * len(self.shape)
      sides[self.labels] = self.shape[self.labels]
      mask &= has_label.reshape(sides)
    return jnp.broadcast_to(mask, self.shape)


class _Layer(NamedTuple):
  product: Product
  inputs: int  # the axis
  outputs: int
  is_last: bool

  @property
  def width(self) -> int:
    return self.product.w_shape[self.outputs]

  def output_shares(self) -> np.ndarray:
    width = self.width
    return np.zeros(width) if self.is_last else np.arange(width) / width


def places_of(method: str, task: Task) -> Variables:
  """Finds where all variables of a task's model stand.

  Args:
    method: who asks, for messages.
    task: whose layers are known.

  Returns:
    Pytree like the variables that methods train, of `Place`.

  Raises:
    ValueError: a variable belongs to no channel, or to one that is not known; the message names it.
  """
  variables = jax.eval_shape(task.init, jax.random.key(0))
  paths = list(dict.fromkeys(product.path for product in task.products))
  layers = {
    path: _layer(
      method, path, [one for one in task.products if one.path == path], path == paths[-1]
    )
    for path in paths
  }
  flat, treedef = jax.tree_util.tree_flatten_with_path(dict(variables))
  named = [(trees.path_name(path), leaf.shape) for path, leaf in flat]
  kept = {name.split("/", 1)[1].rpartition("/")[0] for name, _ in named if name[:7] != "params/"}
  places = []
  for name, shape in named:
    collection, _, inner = name.partition("/")
    folder = inner.rpartition("/")[0]
    is_param = collection == "params"
    own = next((p for p in (inner, folder) if p in layers and is_param), None)
    if own is not None and layers[own].product.w_shape == shape:
      places.append(_of_kernel(method, own, layers))
      continue
    owner = next(
      (path for path in layers if folder and folder in (path, path.rpartition("/")[0])), None
    )
    place = _of_layer(layers[owner], shape) if owner and is_param else None
    if place is None and (not is_param or folder in kept):
      place = _of_norm(layers, shape)
    if place is None:
      raise _refusal(method, inner, "its entries belong to no channels that are known")
    places.append(place)
  return jax.tree.unflatten(treedef, places)


def _layer(method: str, path: str, products: list[Product], is_last: bool) -> _Layer:
  product = products[0]
  if any(one.problem or one.inside in ("scan", "while_loop") for one in products):
    raise _refusal(method, path, "it cannot be followed")
  if product.kind == "dot_general":
    contracted, batched = product.arguments["dimension_numbers"]
    side = 0 if product.is_swapped else 1
    inputs = list(contracted[side])
    outputs = [axis for axis in range(len(product.w_shape)) if axis not in inputs]
    is_simple = not batched[side]
  else:
    spec = _conv_spec(product)
    outputs, inputs = [spec.rhs_spec[0]], [spec.rhs_spec[1]]
    is_simple = not product.is_swapped and product.arguments.get("batch_group_count", 1) == 1
    groups = product.arguments.get("feature_group_count", 1)
    is_simple &= groups == 1 or product.w_shape[inputs[0]] == 1
  if not is_simple or len(inputs) != 1 or len(outputs) != 1:
    raise _refusal(method, path, "it has more than one axis of inputs or of outputs")
  return _Layer(product, inputs[0], outputs[0], is_last)


def _conv_spec(product: Product) -> lax.ConvDimensionNumbers:
  numbers = product.arguments.get("dimension_numbers")
  return lax.conv_dimension_numbers(product.x_shape, product.w_shape, numbers)


def _of_kernel(method: str, path: str, layers: dict[str, _Layer]) -> Place:
  layer = layers[path]
  shape = layer.product.w_shape
  before = list(layers.values())[: list(layers).index(path)]
  inputs = _input_shares(method, path, layer, before)
  shares = (
    _along(inputs, layer.inputs, shape),
    _along(layer.output_shares(), layer.outputs, shape),
  )
  return Place(shape, shares, not layer.is_last, layer.outputs if layer.is_last else None)


def _input_shares(method: str, path: str, layer: _Layer, before: list[_Layer]) -> np.ndarray:
  size = layer.product.w_shape[layer.inputs]
  is_depthwise = layer.product.arguments.get("feature_group_count", 1) > 1
  if not layer.product.is_trained or is_depthwise:
    return np.zeros(size)
  if before and size != before[-1].width and size % before[-1].width == 0:
    last, num_channels = before[-1].product, before[-1].width
    if (last.kind, layer.product.kind) == ("conv_general_dilated", "dot_general"):
      entries, spec = np.arange(size), _conv_spec(last)
      is_at_end = spec.out_spec[1] == len(spec.out_spec) - 1
      channels = entries % num_channels if is_at_end else entries // (size // num_channels)
      return channels / num_channels
  if size in [one.width for one in before]:
    return np.arange(size) / size
  raise _refusal(method, path, f"its {size} inputs are not those of a layer before")


def _of_layer(layer: _Layer, shape: tuple[int, ...]) -> Place | None:
  """Finds the place of what stands beside a kernel, such as a bias."""
  if layer.width not in shape or np.prod(shape) != layer.width:
    return None
  axis = shape.index(layer.width)
  shares = (_along(layer.output_shares(), axis, shape),)
  return Place(shape, shares, not layer.is_last, axis if layer.is_last else None)


def _of_norm(layers: dict[str, _Layer], shape: tuple[int, ...]) -> Place | None:
  """Finds the place of parameters and statistics that belong to each channel of some layer."""
  size = int(np.prod(shape))
  if size == 1:
    return Place(shape, ())
  if size not in [layer.width for layer in layers.values() if not layer.is_last]:
    return None
  return Place(shape, (_along(np.arange(size) / size, shape.index(size), shape),))


def _along(shares: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
  return shares.astype(np.float32).reshape([n if i == axis else 1 for i, n in enumerate(shape)])


def _refusal(method: str, path: str, reason: str) -> ValueError:
  return ValueError(
    f"{method}: cannot make {path} narrower: {reason}; must be a chain of dense layers and"
    " convolutions, with batch norm and shortcuts"
  )


def is_place(node: Any) -> bool:
  """Tells a `Place`, where trees of them are mapped."""
  return isinstance(node, Place)
