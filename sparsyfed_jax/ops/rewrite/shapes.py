"""Where the batch is in the result of a primitive that moves entries, by its parameters."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sparsyfed_jax.ops.rewrite.labels import LONE, join_rows
from sparsyfed_jax.ops.rewrite.versions import Equation
from sparsyfed_jax.ops.rows import Rows, Unknown, Where

# The primitives whose results have, entry by entry, the rows of their operands.
ELEMENTWISE = frozenset(
  """abs acos acosh add add_any and asin asinh atan atan2 atanh bitcast_convert_type cbrt ceil clamp
  clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq erf
  erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log
  log1p logistic lt max min mul name ne neg nextafter not one_minus_square optimization_barrier
  or polygamma population_count pow pvary random_unwrap random_wrap real reduce_precision rem
  reshard round rsqrt select_n shard_alike sharding_constraint shift_left shift_right_arithmetic
  shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta""".split()
)
# Of those, and of the others below, the primitives whose results are views of their first operand.
CASTS = frozenset(
  """convert_element_type copy copy_p device_put name optimization_barrier pvary reduce_precision
  reshard sharding_constraint stop_gradient""".split()
)
VIEWS = frozenset(
  "broadcast_in_dim dynamic_slice reshape rev slice split squeeze transpose unstack".split()
)
_REDUCTIONS = frozenset(
  """argmax argmin reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
  reduce_xor""".split()
)
_CUMULATIVE = frozenset("cumlogsumexp cummax cummin cumprod cumsum".split())


def rows_of_result(equation: Equation, rows: Sequence[Where]) -> Where:
  """Finds where the batch is in the results of an equation, given where it is in its operands."""
  known = [one for one in rows if one is not None]
  if not known:
    return None
  unknown = next((one for one in known if isinstance(one, Unknown)), None)
  if unknown is not None:
    return unknown
  if any(isinstance(one, Rows) and one.size == 1 for one in known):
    return LONE  # whatever happens to a single example, all entries are its own
  name = equation.primitive.name
  if name in ELEMENTWISE:
    return _joined(equation, rows)
  return _RULES.get(name, _unknown)(equation, rows)


def reshaped(rows: Rows, old: Sequence[int], new: Sequence[int]) -> Rows | None:
  """Finds the batch after a reshape: neighbours in memory stay neighbours."""
  assert rows.size is not None
  stride = rows.after * math.prod(old[rows.axis + 1 :])
  for axis, length in enumerate(new):
    below = math.prod(new[axis + 1 :])
    if below and stride % below == 0 and (length * below) % (stride * rows.size) == 0:
      return Rows(axis, stride // below, rows.size)
  return None


def _unknown(equation: Equation, rows: Sequence[Where] = ()) -> Unknown:
  return Unknown(equation.primitive.name)


def _joined(equation: Equation, rows: Sequence[Where]) -> Where:
  result: Where = None
  for one in rows:
    result = join_rows(result, one, equation.primitive.name)
  return result


def _shape(variable: Any) -> tuple[int, ...]:
  return getattr(variable.aval, "shape", ())


def _without(rows: Where, axes: Iterable[int]) -> Where:
  """Finds the batch after axes are gone."""
  assert isinstance(rows, Rows)
  axes = tuple(axes)
  if rows.axis in axes:
    return None
  return rows._replace(axis=rows.axis - sum(axis < rows.axis for axis in axes))


def _moved(place: Callable[[Any, int], Any]) -> Callable[[Equation, Sequence[Where]], Where]:
  """Makes the rule of a primitive with one operand whose axis goes to another place."""

  def rule(equation: Equation, rows: Sequence[Where]) -> Where:
    (one,) = (entry for entry in rows if isinstance(entry, Rows))
    return one._replace(axis=int(place(equation.params, one.axis)))

  return rule


def _dot_general(equation: Equation, rows: Sequence[Where]) -> Where:
  contracted, batched = equation.params["dimension_numbers"]
  ranks = [len(_shape(variable)) for variable in equation.invars]
  free = [
    [axis for axis in range(ranks[side]) if axis not in (*contracted[side], *batched[side])]
    for side in (0, 1)
  ]
  result: Where = None
  for side, one in enumerate(rows):
    if not isinstance(one, Rows) or one.axis in contracted[side]:
      continue
    if one.axis in batched[side]:
      axis = list(batched[side]).index(one.axis)
    else:
      axis = len(batched[0]) + side * len(free[0]) + free[side].index(one.axis)
    result = join_rows(result, one._replace(axis=axis), "dot_general")
  return result


def _convolution(equation: Equation, rows: Sequence[Where]) -> Where:
  numbers, (x, w) = equation.params["dimension_numbers"], rows
  is_usual = equation.params["batch_group_count"] == 1 and w is None
  if not is_usual or not isinstance(x, Rows) or x.axis != numbers.lhs_spec[0]:
    return _unknown(equation)
  return x._replace(axis=numbers.out_spec[0])


def _reshape(equation: Equation, rows: Sequence[Where]) -> Where:
  assert isinstance(rows[0], Rows)
  old, new = _shape(equation.invars[0]), _shape(equation.outvars[0])
  return reshaped(rows[0], old, new) or _unknown(equation)


def _squeeze(equation: Equation, rows: Sequence[Where]) -> Where:
  rank = len(_shape(equation.invars[0]))
  gone = _without(rows[0], (axis % rank for axis in equation.params["dimensions"]))
  return _unknown(equation) if gone is None else gone


def _unstack(equation: Equation, rows: Sequence[Where]) -> Where:
  gone = _without(rows[0], [equation.params["axis"]])
  return _unknown(equation) if gone is None else gone


def _reduction(equation: Equation, rows: Sequence[Where]) -> Where:
  params = equation.params
  return _without(
    _joined(equation, rows), params["axes"] if "axes" in params else params["dimensions"]
  )


def _collective(equation: Equation, rows: Sequence[Where]) -> Where:
  """The rule of a sum over a named axis, which `vmap` makes one over an axis of the array."""
  axes = equation.params["axes"]
  if not all(isinstance(axis, int) for axis in axes):
    return _unknown(equation)
  return _without(_joined(equation, rows), axes)


def _along(parameter: str) -> Callable[[Equation, Sequence[Where]], Where]:
  """Makes the rule of a primitive that mixes entries along one axis, and along no other."""

  def rule(equation: Equation, rows: Sequence[Where]) -> Where:
    joined, axis = _joined(equation, rows), equation.params[parameter]
    return _unknown(equation) if isinstance(joined, Rows) and joined.axis == axis else joined

  return rule


def _top_k(equation: Equation, rows: Sequence[Where]) -> Where:
  rank = len(_shape(equation.invars[0]))
  axis = equation.params.get("axis", rank - 1) % rank
  assert isinstance(rows[0], Rows)
  return _unknown(equation) if rows[0].axis == axis else rows[0]


def _whole(equation: Equation, rows: Sequence[Where]) -> Where:
  """The rule of a primitive that takes a part of each axis: of the batch's, it has to be all."""
  joined = _joined(equation, rows)
  if not isinstance(joined, Rows):
    return joined
  axis, params = joined.axis, equation.params
  shapes = [_shape(variable) for variable in (*equation.invars, *equation.outvars)]
  lengths = {shape[axis] for shape in shapes if len(shape) > axis}
  is_reversed = equation.primitive.name == "rev" and axis in params["dimensions"]
  is_padded = "padding_config" in params and any(params["padding_config"][axis])
  is_windowed = "window_dimensions" in params and params["window_dimensions"][axis] != 1
  if len(lengths) > 1 or is_reversed or is_padded or is_windowed:
    return _unknown(equation)
  return joined


def _gather(equation: Equation, rows: Sequence[Where]) -> Where:
  numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
  shape, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
  outer = [axis for axis in range(len(out)) if axis not in numbers.offset_dims]
  result: Where = None
  source, indices = rows[:2]
  if isinstance(source, Rows):
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    if source.axis in numbers.operand_batching_dims:
      place = numbers.operand_batching_dims.index(source.axis)
      axis = outer[numbers.start_indices_batching_dims[place]]
    elif source.axis in kept and sizes[source.axis] == shape[source.axis]:
      axis = numbers.offset_dims[kept.index(source.axis)]
    else:
      return _unknown(equation)
    result = source._replace(axis=axis)
  if isinstance(indices, Rows):
    if indices.axis >= len(outer):  # the axis of the coordinates
      return _unknown(equation)
    result = join_rows(result, indices._replace(axis=outer[indices.axis]), "gather")
  return result


_RULES: dict[str, Callable[[Equation, Sequence[Where]], Where]] = {
  "broadcast_in_dim": _moved(lambda params, axis: params["broadcast_dimensions"][axis]),
  "concatenate": _along("dimension"),
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
  "gather": _gather,
  "reshape": _reshape,
  "sort": _along("dimension"),
  "squeeze": _squeeze,
  "top_k": _top_k,
  "transpose": _moved(lambda params, axis: tuple(params["permutation"]).index(axis)),
  "unstack": _unstack,
  **dict.fromkeys(("pmax", "pmin", "psum"), _collective),
  **dict.fromkeys(_CUMULATIVE, _along("axis")),
  **dict.fromkeys(_REDUCTIONS, _reduction),
  **dict.fromkeys(
    """dynamic_slice dynamic_update_slice pad reduce_window reduce_window_max reduce_window_min
    reduce_window_sum rev select_and_gather_add select_and_scatter_add slice split""".split(),
    _whole,
  ),
}
