"""What stands at the head of a payload: the structure of a tree, dtypes and shapes."""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax import trees
from sparsyfed_jax.wire.reader import CodecError, Reader

DTYPES = (
  *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
  *("float16", "bfloat16", "float32", "float64"),
)
VERSION = 2
MAGIC = b"SFJ"
HEADER_BYTES = len(MAGIC) + 2
DIGEST_BYTES = 8
CRC_BYTES = 4
MAX_ENTRIES = 2**31 - 1  # of a leaf

_NONE, _DICT, _LIST, _TUPLE, _LEAF = 0, 1, 2, 3, 16
_MAX_DEPTH = 64
_MAX_NODES = 2**16  # an object of Python each, however short the payload
_MAX_AXES = 64  # NumPy's own limit


class Spec(NamedTuple):
  """What is known of a leaf besides its values."""

  name: str  # its path, for messages
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """The number of entries."""
    return math.prod(self.shape)


class Layout(NamedTuple):
  """What encoding and counting share: the leaves in order, and the bytes that announce them."""

  specs: list[Spec]
  leaves: list[Any]
  references: list[Any] | None  # beside the leaves
  schema: bytes

  @property
  def fixed_bytes(self) -> int:
    """The bytes that do not depend on values: all but what follows the leaves' forms."""
    digest = 0 if self.references is None else DIGEST_BYTES
    return HEADER_BYTES + len(self.schema) + digest + len(self.specs) + CRC_BYTES


def make_layout(tree: Any, reference: Any = None) -> Layout:
  """Takes a tree apart, which may be of traced arrays; raises what `encode` does."""
  if reference is None:
    leaves: list[Any] = []
    specs: list[Spec] = []
    schema = b"".join(_write_node(tree, (), leaves, specs, [_MAX_NODES]))
    return Layout(specs, leaves, None, schema)
  specs, references, treedef, schema = against(reference)
  flat, found = jax.tree_util.tree_flatten_with_path(tree)
  if found != treedef:
    raise ValueError("tree and reference must have one structure, and theirs differ")
  for spec, (_, leaf) in zip(specs, flat, strict=True):
    other = _spec(spec.name, leaf)
    if other != spec:
      raise ValueError(
        f"leaf {spec.name!r}: {other.dtype}{list(other.shape)} in tree, "
        f"{spec.dtype}{list(spec.shape)} in reference; they must be the same"
      )
  return Layout(specs, [leaf for _, leaf in flat], references, schema)


def against(reference: Any) -> tuple[list[Spec], list[Any], Any, bytes]:
  """The leaves of a reference, its structure, and the bytes that stand for both."""
  flat, treedef = jax.tree_util.tree_flatten_with_path(reference)
  specs = [_spec(trees.path_name(path), leaf) for path, leaf in flat]
  # Not the structure itself: what stands for that in text may differ from process to process.
  text = "".join(f"{spec.name!r} {spec.dtype.name}{list(spec.shape)}\n" for spec in specs)
  crc = zlib.crc32(text.encode("utf-8", "surrogatepass"))
  return specs, [leaf for _, leaf in flat], treedef, struct.pack("<I", crc)


def read_tree(reader: Reader) -> tuple[list[Spec], Any]:
  """Reads the nodes that `make_layout` writes; returns the leaves and their tree."""
  specs: list[Spec] = []
  return specs, jax.tree.structure(_read_node(reader, specs, [_MAX_NODES], 0))


def _spec(name: str, leaf: Any) -> Spec:
  dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
  known = getattr(dtype, "name", None)
  if known not in DTYPES:
    raise TypeError(
      f"leaf {name!r} must be an array of a dtype of {', '.join(DTYPES)}, "
      f"found {type(leaf).__name__} of {dtype}"
    )
  spec = Spec(name, jnp.dtype(known), tuple(np.shape(leaf)))
  if not _is_small_enough(spec.shape):
    raise ValueError(f"leaf {name!r} may have {MAX_ENTRIES} entries, found {list(spec.shape)}")
  return spec


def _is_small_enough(shape: Sequence[int]) -> bool:
  # Axes of length 0 apart: NumPy does the same.
  return len(shape) <= _MAX_AXES and math.prod(n for n in shape if n) <= MAX_ENTRIES


def _write_node(
  node: Any, path: tuple[str, ...], leaves: list[Any], specs: list[Spec], budget: list[int]
) -> Iterator[bytes]:
  """Writes a node and those below it; `budget` has the number of nodes that may still come."""
  if len(path) > _MAX_DEPTH:
    raise ValueError(f"tree may be nested {_MAX_DEPTH} deep, and is deeper at {'/'.join(path)!r}")
  budget[0] -= 1
  if budget[0] < 0:
    raise ValueError(f"tree may have {_MAX_NODES} leaves and containers, and has more")
  if node is None:
    yield bytes([_NONE])
  elif isinstance(node, Mapping):
    for key in node:
      if not isinstance(key, str):
        raise TypeError(f"keys must be str without a reference, found {key!r}")
    yield struct.pack("<BI", _DICT, len(node))
    for key in sorted(node):  # in JAX's order
      try:
        text = key.encode()
        yield struct.pack("<H", len(text)) + text
      except (UnicodeEncodeError, struct.error):
        raise ValueError(
          f"keys must be UTF-8 of less than 65536 bytes, found {key[:40]!r}"
        ) from None
      yield from _write_node(node[key], (*path, key), leaves, specs, budget)
  elif type(node) in (list, tuple):
    yield struct.pack("<BI", _LIST if isinstance(node, list) else _TUPLE, len(node))
    for i, child in enumerate(node):
      yield from _write_node(child, (*path, str(i)), leaves, specs, budget)
  elif isinstance(node, list | tuple):
    raise TypeError(
      f"containers must be mappings, lists and tuples without a reference, found "
      f"{type(node).__name__} at {'/'.join(path)!r}"
    )
  else:
    spec = _spec("/".join(path), node)
    leaves.append(node)
    specs.append(spec)
    tag = _LEAF + DTYPES.index(spec.dtype.name)
    yield struct.pack(f"<BB{len(spec.shape)}I", tag, len(spec.shape), *spec.shape)


def _read_node(reader: Reader, specs: list[Spec], budget: list[int], depth: int) -> Any:
  """Reads a node and those below it, with the leaves' numbers in place of them."""
  if depth > _MAX_DEPTH:
    raise CodecError(f"the tree is nested more than {_MAX_DEPTH} deep")
  budget[0] -= 1
  if budget[0] < 0:
    raise CodecError(f"the tree has more than {_MAX_NODES} leaves and containers")
  tag = reader.uint(1)
  if tag == _NONE:
    return None
  if tag == _DICT:
    made: dict[str, Any] = {}
    last = None
    for _ in range(reader.uint(4)):
      try:
        key = str(reader.take(reader.uint(2)), "utf-8")
      except UnicodeDecodeError:
        raise CodecError("a key is not UTF-8") from None
      if last is not None and key <= last:
        raise CodecError(f"the keys do not ascend at {key[:40]!r}")
      made[key] = _read_node(reader, specs, budget, depth + 1)
      last = key
    return made
  if tag in (_LIST, _TUPLE):
    nodes = [_read_node(reader, specs, budget, depth + 1) for _ in range(reader.uint(4))]
    return nodes if tag == _LIST else tuple(nodes)
  if not _LEAF <= tag < _LEAF + len(DTYPES):
    raise CodecError(f"no node of a tree begins with {tag}")
  shape = tuple(reader.uint(4) for _ in range(reader.uint(1)))
  if not _is_small_enough(shape):
    raise CodecError(f"an array may have {MAX_ENTRIES} entries, found {list(shape)}")
  specs.append(Spec(str(len(specs)), jnp.dtype(DTYPES[tag - _LEAF]), shape))
  return len(specs) - 1
