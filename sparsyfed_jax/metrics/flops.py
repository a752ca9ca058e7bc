"""Floating-point operations of local training, by layer, from shapes and densities.

Products with weights count, two operations a multiply-add; nothing else does: no biases, norms,
activations, thresholds, Top-K or optimizers, and no products without weights (the scores and
mixtures of attention). These are what would be left to do for hardware that skips zeros; dense
hardware does all of it. Numbers exceed int32, so all is Python's ints and floats, on the host.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sparsyfed_jax.ops import Product, Rows

Densities: TypeAlias = Sequence[float] | np.ndarray | jax.Array


class LayerCost(NamedTuple):
  """FLOPs of a dense layer for one example, over all its calls.

  Example:
    >>> LayerCost("Dense_0", forward=12, input_gradient=0, weight_gradient=12).forward
    12
  """

  name: str  # as in `trees.layer_names`
  forward: int
  input_gradient: int  # 0 where nothing that is trained comes before the layer
  weight_gradient: int


class LayerShares(NamedTuple):
  """What share of a layer's multiply-adds a method needs, in [0, 1].

  Example:
    >>> LayerShares(forward=0.5, input_gradient=0.5, weight_gradient=1.0).weight_gradient
    1.0
  """

  forward: float
  input_gradient: float
  weight_gradient: float


DENSE = LayerShares(1.0, 1.0, 1.0)


def dense_shares(
  options: Any, hyper: Any, name: str, is_first: bool, density: float, target: float
) -> LayerShares:
  """Finds the shares of a method that computes with all weights."""
  return DENSE


def shares_inside_masks(
  options: Any, hyper: Any, name: str, is_first: bool, density: float, target: float
) -> LayerShares:
  """Finds the shares of a method that trains inside masks, whose other gradients it can spare."""
  return LayerShares(density, density, density)


def larger(a: Any, b: Any) -> Any:
  """Takes the larger of two numbers, of which one may be traced, as where rounds are timed.

  Example:
    >>> larger(0.5, 0.1)
    0.5
  """
  is_plain = isinstance(a, int | float) and isinstance(b, int | float)
  return max(a, b) if is_plain else jnp.maximum(a, b)


def product_costs(products: Sequence[Product]) -> tuple[LayerCost, ...]:
  """Counts what each layer takes of the products that `ops.find_layers` found in a model.

  What a loop of unknown length repeats counts once, and so does, for each example, a product that
  is the same for all examples.

  Example:
    >>> import jax.numpy as jnp
    >>> from sparsyfed_jax import ops
    >>> params, x = {"w": jnp.ones((3, 2))}, jnp.ones((4, 3))
    >>> product_costs(ops.find_layers(lambda params, x: x @ params["w"], params, x))
    (LayerCost(name='w', forward=12, input_gradient=0, weight_gradient=12),)
  """
  return _summed((product.path, 2 * _pairs_of(product), product.is_trained) for product in products)


def _pairs_of(product: Product) -> int:
  """Counts the multiply-adds of a product, for one example."""
  arguments = {name: value for name, value in product.arguments.items() if name in _COUNTED}
  if product.kind == "dot_general":
    numbers = arguments["dimension_numbers"]
    if product.is_swapped:
      numbers = tuple(pair[::-1] for pair in numbers)
    count = _dot_products(product.x_shape, product.w_shape, numbers)
  else:
    count = _conv_products(product.x_shape, product.w_shape, **arguments)
  size = product.rows.size if isinstance(product.rows, Rows) and product.rows.size else 1
  return count * product.repeats // size


_COUNTED = ("dimension_numbers", "window_strides", "padding", "lhs_dilation", "rhs_dilation")


def _summed(calls: Iterable[tuple[str, int, bool]]) -> tuple[LayerCost, ...]:
  """Adds up what layers take: name and FLOPs forward of a call, and whether its input is trained.

  Each of the three products pairs the same entries of input, weights and output.
  """
  costs: dict[str, LayerCost] = {}
  for name, flops, is_reached in calls:
    old = costs.get(name, LayerCost(name, 0, 0, 0))
    costs[name] = LayerCost(
      name,
      old.forward + flops,
      old.input_gradient + (flops if is_reached else 0),
      old.weight_gradient + flops,
    )
  return tuple(costs.values())


def work_shares(
  rule: Callable[[str, float], LayerShares],
  layer_names: Sequence[str],
  weight_densities: Densities,
) -> dict[str, LayerShares]:
  """Finds what a client needs to compute in local training.

  Zeros are taken to be spread evenly, and activations kept to be as many as the method allows;
  ReLU may leave fewer. What lies between local training and upload is left out.

  Args:
    rule: finds the shares of a layer of its name and density.
    layer_names: as `trees.layer_names` gives them.
    weight_densities: (num_layers,) in [0, 1], in the order of `layer_names`: shares of non-zeros,
      or of the mask, in what the client starts from. That is what it receives, except where it
      prunes that itself (clients of different densities).

  Returns:
    By layer, in the order of `layer_names`.

  Raises:
    ValueError: a density outside [0, 1], or a number of densities that is not that of layers.

  Example:
    >>> work_shares(lambda name, density: LayerShares(density, density, 1.0), ["Dense_0"], [0.1])
    {'Dense_0': LayerShares(forward=0.1, input_gradient=0.1, weight_gradient=1.0)}
  """
  densities = [float(density) for density in np.asarray(weight_densities, np.float64)]
  if len(densities) != len(layer_names):
    raise ValueError(
      f"weight_densities must hold one for each of {len(layer_names)} layers, "
      f"found {len(densities)}"
    )
  for name, density in zip(layer_names, densities, strict=True):
    _require_share(f"weight_densities of {name}", density)
  return {name: rule(name, d) for name, d in zip(layer_names, densities, strict=True)}


def client_flops(
  costs: Sequence[LayerCost], shares: Mapping[str, LayerShares], num_examples: float
) -> float:
  """Counts the FLOPs of local training, forward and backward.

  Args:
    costs: of the model.
    shares: of each of its layers; `DENSE` is for those that are computed whole.
    num_examples: processed in the round: the client's examples times its epochs. Those of several
      clients together where all have the same shares.

  Raises:
    ValueError: a layer without shares, or a negative number of examples.

  Example:
    >>> costs = [LayerCost("Dense_0", 16, 0, 16)]
    >>> client_flops(costs, {"Dense_0": LayerShares(0.5, 0.5, 1.0)}, num_examples=10)
    240.0
  """
  return sum(row["total"] for row in flops_table(costs, shares, num_examples))


def flops_table(
  costs: Sequence[LayerCost], shares: Mapping[str, LayerShares], num_examples: float
) -> list[dict[str, Any]]:
  """Counts the FLOPs of local training, layer by layer.

  Arguments and errors are those of `client_flops`.

  Returns:
    A row for each layer, in the order of `costs`: its name (`layer`), FLOPs `forward`, of its
    `input_gradient`, of its `weight_gradient`, of all three (`total`), of all three if dense
    (`dense_total`), and the `share` of the two.

  Example:
    >>> rows = flops_table([LayerCost("Dense_0", 16, 0, 16)], {"Dense_0": DENSE}, num_examples=1)
    >>> rows[0]["share"]
    1.0
  """
  missing = [cost.name for cost in costs if cost.name not in shares]
  if missing:
    raise ValueError(f"shares must hold every layer, found none of {', '.join(missing)}")
  if not num_examples >= 0:
    raise ValueError(f"num_examples must not be negative, found {num_examples}")
  rows = []
  for name, *dense in costs:
    parts = [flops * part for flops, part in zip(dense, shares[name], strict=True)]
    forward, input_gradient, weight_gradient = (num_examples * float(part) for part in parts)
    rows.append(
      {
        "layer": name,
        "forward": forward,
        "input_gradient": input_gradient,
        "weight_gradient": weight_gradient,
        "total": forward + input_gradient + weight_gradient,
        "dense_total": num_examples * float(sum(dense)),
        "share": sum(parts) / sum(dense) if sum(dense) else 0.0,
      }
    )
  return rows


def _require_share(name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise ValueError(f"{name} must be in [0, 1], found {value}")


def _dot_products(
  lhs: tuple[int, ...], rhs: tuple[int, ...], dimension_numbers: Any, *args: Any, **kwargs: Any
) -> int:
  """Counts the multiply-adds of `lax.dot_general` by shapes."""
  (_, contracted), (_, batched) = dimension_numbers
  free = [n for axis, n in enumerate(rhs) if axis not in (*contracted, *batched)]
  return prod(lhs) * prod(free)


def _conv_products(
  lhs: tuple[int, ...],
  rhs: tuple[int, ...],
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  *args: Any,
  **kwargs: Any,
) -> int:
  """Counts the multiply-adds of `lax.conv_general_dilated` by shapes, without padding."""
  numbers = lax.conv_dimension_numbers(lhs, rhs, dimension_numbers)
  batch, _, *sizes = (lhs[axis] for axis in numbers.lhs_spec)
  out_features, in_features, *windows = (rhs[axis] for axis in numbers.rhs_spec)
  sources = lhs_dilation or [1] * len(sizes)
  steps = rhs_dilation or [1] * len(sizes)
  if isinstance(padding, str):
    spread = [(n - 1) * source + 1 for n, source in zip(sizes, sources, strict=True)]
    reach = [(n - 1) * step + 1 for n, step in zip(windows, steps, strict=True)]
    padding = lax.padtype_to_pads(spread, reach, window_strides, padding)
  axes = zip(sizes, windows, window_strides, padding, sources, steps, strict=True)
  pairs = prod(_pairs(*axis) for axis in axes)
  # Kernels have the features of one group only; a single example cannot be grouped.
  return batch * in_features * out_features * pairs


def _pairs(
  size: int, window: int, stride: int, padding: tuple[int, int], source: int, step: int
) -> int:
  """Counts the pairs of an output and an entry of the kernel that meet input, along one axis."""
  low, high = padding
  end = (size - 1) * source  # where the last entry of the input is
  num_out = max((end + low + high - (window - 1) * step) // stride + 1, 0)
  places = stride * np.arange(num_out)[:, None] + step * np.arange(window) - low
  return int(np.sum((places >= 0) & (places <= end) & (places % source == 0)))
