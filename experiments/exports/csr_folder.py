"""A folder that SciPy reads: each layer's weights as a CSR matrix, outputs by inputs.

`Conv_0.npz` is what `scipy.sparse.load_npz` takes. Inputs of a convolution are its patches, rows of
pixels first and channels last; `/` in a layer's name becomes `.`. `others.npz` holds biases, norms
and the like, `description.json` the rest.
"""

import pathlib
from typing import Any

import numpy as np

from experiments.exports import weights
from experiments.exports.network import Ops, forward, is_known
from experiments.exports.packages import need
from sparsyfed_jax.io.writers import write_json
from sparsyfed_jax.loaded import Loaded

_PART = 4  # examples at a time, whose patches are soon used again; 32 took twice as long
_OTHERS, _DESCRIPTION = "others.npz", "description.json"


def write(loaded: Loaded, path: pathlib.Path, dtype: str, compression: str | None) -> None:
  sparse = need("scipy.sparse", "csr")
  path.mkdir()
  kernels = weights.prunable(loaded.trained)
  for name, kernel in kernels.items():
    matrix = sparse.csr_array(kernel.reshape(-1, kernel.shape[-1]).T)
    sparse.save_npz(path / _file_name(name), matrix)
  others = {
    name: leaf
    for name, leaf in weights.flat(loaded.trained).items()
    if name.removeprefix("params/").removesuffix("/kernel") not in kernels
  }
  np.savez_compressed(path / _OTHERS, allow_pickle=False, **others)
  shapes = {name: kernel.shape for name, kernel in kernels.items()}
  write_json(path / _DESCRIPTION, {**loaded.description, "kernels": shapes})


def run(loaded: Loaded, path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  """Computes logits by SciPy's products; of a network that is not ours by JAX's."""
  if is_whole(loaded):
    return predict(loaded, ops(loaded, path), weights.scaled(loaded, x))
  table = _read_others(path)
  for name, kernel in weights.prunable(loaded.trained).items():
    table[f"params/{name}/kernel"] = _matrix(path, name).toarray().T.reshape(kernel.shape)
  return weights.outputs(loaded, weights.nested(table, loaded.trained), x)


def is_whole(loaded: Loaded) -> bool:
  """Tells whether all layers of the network are known, and all have their matrices."""
  return is_known(loaded.model) and not loaded.description.get("prunable")


def predict(loaded: Loaded, layers: Ops, scaled: np.ndarray) -> np.ndarray:
  """Computes logits of scaled examples by layers of `ops`, a few at a time."""
  parts = [scaled[start : start + _PART] for start in range(0, len(scaled), _PART)]
  return np.concatenate([forward(loaded.model, layers, part) for part in parts])


def masks(loaded: Loaded, path: pathlib.Path) -> dict[str, np.ndarray]:
  """Finds what is stored, zeros among it or not."""
  found = {}
  for name, kernel in weights.prunable(loaded.trained).items():
    matrix = _matrix(path, name)
    matrix.data = np.ones_like(matrix.data)
    found[name] = matrix.toarray().T.reshape(kernel.shape) != 0
  return found


def ops(loaded: Loaded, path: pathlib.Path, is_dense: bool = False) -> Ops:
  """Makes the layers of a folder: SciPy's products, or with `is_dense` NumPy's of the same weights.

  Arrays have their channels or features first, so that a layer is one product from the left.
  """
  shapes = {name: kernel.shape for name, kernel in weights.prunable(loaded.trained).items()}
  others = _read_others(path)
  matrices = {name: _matrix(path, name) for name in shapes}
  if is_dense:
    matrices = {name: np.ascontiguousarray(each.toarray()) for name, each in matrices.items()}

  def of(name: str, kind: str = "params") -> np.ndarray | None:
    return others.get(f"{kind}/{name}")

  def product(name: str, columns: np.ndarray) -> np.ndarray:
    y, bias = matrices[name] @ columns, of(f"{name}/bias")
    return y if bias is None else y + bias[:, None]

  def conv(name: str, x: np.ndarray, stride: int, padding: int) -> np.ndarray:
    columns, shape = _patches_of(x, shapes[name][:2], stride, padding)
    return product(name, columns).reshape(-1, *shape)

  def dense(name: str, x: np.ndarray) -> np.ndarray:
    return product(name, x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])

  def affine(name: str, x: np.ndarray) -> np.ndarray:
    return x * _wide(of(f"{name}/scale"), x) + _wide(of(f"{name}/bias"), x)

  def batch_norm(name: str, x: np.ndarray) -> np.ndarray:
    mean, var = of(f"{name}/mean", "batch_stats"), of(f"{name}/var", "batch_stats")
    assert mean is not None and var is not None
    return affine(name, (x - _wide(mean, x)) / np.sqrt(_wide(var, x) + np.float32(1e-5)))

  def group_norm(name: str, x: np.ndarray, groups: int) -> np.ndarray:
    grouped = x.reshape(groups, -1, *x.shape[1:])
    return affine(name, _normalised(grouped, (1, 3, 4), 1e-5).reshape(x.shape))

  return Ops(
    images=lambda x: np.ascontiguousarray(np.moveaxis(x, -1, 0)),
    conv=conv,
    dense=dense,
    batch_norm=batch_norm,
    group_norm=group_norm,
    layer_norm=lambda name, x: affine(name, _normalised(x, (0,), 1e-6)),
    relu=lambda x: np.maximum(x, 0),
    gelu=lambda x: x * (1 + np.tanh(np.float32(0.7978845608) * (x + 0.044715 * x**3))) / 2,
    max_pool=_max_pool,
    flat=_flat,
    patches=_tokens,
    positions=lambda name, x: x + np.moveaxis(others[f"params/{name}"], -1, 0),
    attention=_attention,
    mean=lambda x: x.mean(axis=tuple(range(2, x.ndim))),
    logits=lambda x: np.ascontiguousarray(x.T),
  )


def _file_name(layer: str) -> str:
  return f"{layer.replace('/', '.')}.npz"


def _matrix(path: pathlib.Path, name: str) -> Any:
  return need("scipy.sparse", "csr").load_npz(path / _file_name(name))


def _read_others(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path / _OTHERS) as file:
    return dict(file)


def _wide(values: np.ndarray | None, x: np.ndarray) -> np.ndarray:
  assert values is not None
  return values.reshape(-1, *[1] * (x.ndim - 1))


def _normalised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
  centred = x - x.mean(axes, keepdims=True)
  return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + np.float32(epsilon))


def _windows(
  x: np.ndarray, sides: tuple[int, ...], stride: int, padding: int, filler: float
) -> list[np.ndarray]:
  """Lists what each place of a window sees, (channels, n, height, width) each."""
  around = (padding, padding)
  x = np.pad(x, ((0, 0), (0, 0), around, around), constant_values=filler) if padding else x
  height, width = ((x.shape[2 + i] - sides[i]) // stride + 1 for i in (0, 1))
  return [
    x[:, :, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]
    for i in range(sides[0])
    for j in range(sides[1])
  ]


def _patches_of(
  x: np.ndarray, sides: tuple[int, ...], stride: int, padding: int
) -> tuple[np.ndarray, tuple[int, ...]]:
  seen = _windows(x, sides, stride, padding, 0)
  shape = seen[0].shape[1:]
  return np.concatenate([each.reshape(len(x), -1) for each in seen]), shape


def _max_pool(x: np.ndarray, side: int, stride: int, padding: int) -> np.ndarray:
  return np.maximum.reduce(_windows(x, (side, side), stride, padding, -np.inf))


def _flat(x: np.ndarray) -> np.ndarray:
  """(channels, n, height, width) to (height * width * channels, n), or what is flat already."""
  return np.moveaxis(x, (0, 1), (-2, -1)).reshape(-1, x.shape[1])


def _tokens(x: np.ndarray, side: int) -> np.ndarray:
  channels, n, height, width = x.shape
  x = x.reshape(channels, n, height // side, side, width // side, side)
  return x.transpose(3, 5, 0, 1, 2, 4).reshape(side * side * channels, n, -1)


def _attention(qkv: np.ndarray, heads: int) -> np.ndarray:
  features, n, tokens = qkv.shape[0] // 3, *qkv.shape[1:]
  queries, keys, values = qkv.reshape(3, heads, features // heads, n, tokens)
  scores = np.einsum("hdnq,hdnk->hnqk", queries, keys) / np.sqrt(np.float32(features // heads))
  scores = np.exp(scores - scores.max(-1, keepdims=True))
  shares = scores / scores.sum(-1, keepdims=True)
  return np.einsum("hnqk,hdnk->hdnq", shares, values).reshape(features, n, tokens)
