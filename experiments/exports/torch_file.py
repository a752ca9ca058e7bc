"""A state dict of PyTorch, in its layouts and with the names that such networks have there.

ResNets have torchvision's names (`conv1.weight`, `layer1.0.downsample.0.weight`, `fc.weight`),
vision transformers timm's, the others `conv1`, `fc1` and so on. Dense layers behind images take
them flat with the channels first, as PyTorch has them. `PATH.json` beside the file says how inputs
are scaled.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.exports import weights
from experiments.exports.network import ExportError, Ops, forward, is_known
from experiments.exports.packages import need
from sparsyfed_jax import models
from sparsyfed_jax.loaded import Loaded

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_BLOCK = {
  **{"qkv": "attn.qkv", "out": "attn.proj", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2"},
  **{"LayerNorm_0": "norm1", "LayerNorm_1": "norm2"},
}


def write(loaded: Loaded, path: pathlib.Path, dtype: str, compression: str | None) -> None:
  torch = need("torch", "torch")
  torch.save({name: torch.from_numpy(each) for name, each in state_dict(loaded).items()}, path)


def run(loaded: Loaded, path: pathlib.Path, x: np.ndarray) -> np.ndarray:
  torch = need("torch", "torch")
  # NNPACK, which computes convolutions where oneDNN does not, errs by 1e-5 of the largest value.
  with torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
    return forward(loaded.model, ops(loaded, _read(path)), weights.scaled(loaded, x))


def masks(loaded: Loaded, path: pathlib.Path) -> dict[str, np.ndarray]:
  state = _read(path)
  found = {}
  for name, kernel in weights.prunable(loaded.trained).items():
    stored = state[f"{module_name(loaded.model, name)}.weight"].numpy()
    found[name] = _flax_layout(loaded, name, stored, kernel.shape) != 0
  return found


def state_dict(loaded: Loaded) -> dict[str, np.ndarray]:
  """Makes the arrays by PyTorch's names.

  Raises:
    ExportError: the network is not one of ours.
  """
  if not is_known(loaded.model):
    raise ExportError(
      f"--format=torch: knows MLP, CNN, ResNet18 and ViT, and the model is a"
      f" {type(loaded.model).__name__}; safetensors, onnx, sfed and csr take any"
    )
  state = {}
  for path, leaf in weights.flat(loaded.variables).items():
    if path == "params/position":
      state["pos_embed"] = leaf.copy()
      continue
    _, *folders, kind = path.split("/")
    name = "/".join(folders)
    value = _torch_layout(loaded, name, leaf) if kind == "kernel" else leaf
    state[f"{module_name(loaded.model, name)}.{_LEAVES.get(kind, kind)}"] = value.copy()
  return state


def module_name(model: Any, layer: str) -> str:
  """Names the PyTorch module of a flax layer, such as `layer1.0.conv1` of `BasicBlock_0/Conv_0`."""
  *folders, last = layer.split("/")
  if isinstance(model, models.ViT):
    inside = {"embed": "patch_embed.proj", "LayerNorm_0": "fc_norm", "head": "head"}
    return f"blocks.{_number(folders[0])}.{_BLOCK[last]}" if folders else inside[last]
  if isinstance(model, models.ResNet18):
    prefix = ""
    if folders:
      block = _number(folders[0])
      prefix = f"layer{block // 2 + 1}.{block % 2}."
    if last == "shortcut":
      return f"{prefix}downsample.0"
    kind, number = last.split("_")
    if kind == "Dense":
      return "fc"
    if kind != "Conv":
      return f"{prefix}downsample.1" if number == "2" else f"{prefix}bn{int(number) + 1}"
    return f"{prefix}conv{int(number) + 1}"
  kind, number = last.split("_")
  return f"{'fc' if kind == 'Dense' else 'conv'}{int(number) + 1}"


def _number(name: str) -> int:
  return int(re.sub(r"\D", "", name))


def _image_in_front(loaded: Loaded, layer: str, fan_in: int) -> tuple[int, ...] | None:
  """Finds the shape, channels last, of the image that a dense layer takes flat, if it does."""
  model = loaded.model
  if isinstance(model, models.ViT) and layer == "embed":
    return model.patch, model.patch, fan_in // model.patch**2
  if layer != "Dense_0" or isinstance(model, models.ResNet18):
    return None
  if isinstance(model, models.CNN):
    height, width = ((side - 2 * len(model.channels)) // 2 for side in loaded.input_shape[:2])
    return height, width, model.channels[-1]
  return loaded.input_shape if len(loaded.input_shape) > 1 else None


def _torch_layout(loaded: Loaded, layer: str, kernel: np.ndarray) -> np.ndarray:
  if kernel.ndim == 4:
    return kernel.transpose(3, 2, 0, 1)
  image = _image_in_front(loaded, layer, len(kernel))
  if image is None:
    return kernel.T
  channels_first = np.moveaxis(kernel.reshape(*image, -1), (-1, -2), (0, 1))
  return channels_first if layer == "embed" else channels_first.reshape(kernel.shape[::-1])


def _flax_layout(
  loaded: Loaded, layer: str, stored: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  if len(shape) == 4:
    return stored.transpose(2, 3, 1, 0)
  image = _image_in_front(loaded, layer, shape[0])
  if image is None:
    return stored.T
  *sides, channels = image
  return np.moveaxis(stored.reshape(-1, channels, *sides), (0, 1), (-1, -2)).reshape(shape)


def _read(path: pathlib.Path) -> Mapping[str, Any]:
  state: Mapping[str, Any] = need("torch", "torch").load(path, weights_only=True)
  return state


def ops(loaded: Loaded, state: Mapping[str, Any]) -> Ops:
  """Makes PyTorch's layers of a state dict: images with channels first, tokens with them last."""
  torch = need("torch", "torch")
  F = torch.nn.functional

  def of(name: str, kind: str) -> Any:
    return state.get(f"{module_name(loaded.model, name)}.{kind}")

  def dense(name: str, x: Any) -> Any:
    if name == "embed":  # a convolution in the state dict
      return F.conv2d(x, of(name, "weight"), of(name, "bias"), loaded.model.patch).flatten(2).mT
    return F.linear(x, of(name, "weight"), of(name, "bias"))

  def batch_norm(name: str, x: Any) -> Any:
    running = of(name, "running_mean"), of(name, "running_var")
    return F.batch_norm(x, *running, of(name, "weight"), of(name, "bias"))

  def attention(qkv: Any, heads: int) -> Any:
    n, tokens, features = qkv.shape
    parts = qkv.reshape(n, tokens, 3, heads, features // 3 // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(n, tokens, -1)

  def images(x: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

  return Ops(
    images=images,
    conv=lambda name, x, stride, padding: F.conv2d(
      x, of(name, "weight"), of(name, "bias"), stride, padding
    ),
    dense=dense,
    batch_norm=batch_norm,
    group_norm=lambda name, x, groups: F.group_norm(
      x, groups, of(name, "weight"), of(name, "bias")
    ),
    layer_norm=lambda name, x: F.layer_norm(
      x, x.shape[-1:], of(name, "weight"), of(name, "bias"), 1e-6
    ),
    relu=F.relu,
    gelu=lambda x: F.gelu(x, approximate="tanh"),
    max_pool=lambda x, side, stride, padding: F.max_pool2d(x, side, stride, padding),
    flat=lambda x: x.flatten(1),
    patches=lambda x, side: x,
    positions=lambda name, x: x + state["pos_embed"],
    attention=attention,
    mean=lambda x: x.mean(1) if x.ndim == 3 else x.mean((2, 3)),
    logits=lambda x: x.numpy(),
  )
