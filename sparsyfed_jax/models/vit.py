"""A small vision transformer to train from scratch (Dosovitskiy et al., 2021, arXiv 2010.11929)."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class EncoderBlock(nn.Module):
  """Self-attention and a two-layer perceptron, each behind a layer norm and beside an identity.

  Attributes:
    heads: of the attention; divides the features.
    mlp_ratio: width of the perceptron, in features.
    dropout: rate behind the attention and behind the perceptron.
    is_causal: whether tokens see none behind them.
  """

  heads: int
  mlp_ratio: int
  dropout: float = 0.0
  is_causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps (batch, tokens, features) to the same shape."""
    features = x.shape[-1]
    drop = nn.Dropout(self.dropout, deterministic=not train)

    y = layer_norm()(x)
    qkv = nn.Dense(3 * features, name="qkv")(y)
    qkv = qkv.reshape(*qkv.shape[:-1], 3, self.heads, features // self.heads)
    y = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, -3, 0), is_causal=self.is_causal)
    x = x + drop(nn.Dense(features, name="out")(y.reshape(x.shape)))

    y = layer_norm()(x)
    y = nn.gelu(nn.Dense(self.mlp_ratio * features, name="mlp_in")(y))
    return x + drop(nn.Dense(features, name="mlp_out")(y))


class ViT(nn.Module):
  """A pre-norm encoder of image patches with learned positions, averaged over its tokens.

  All its weights are kernels of dense layers, but for positions, biases and layer norms.

  Attributes:
    num_classes: outputs.
    patch: side of a square patch, in pixels.
    dim: features of a token.
    depth: encoder blocks.
    heads: of each attention; divides `dim`.
    mlp_ratio: width of each perceptron, in `dim`.
    dropout: rate in training, on the tokens and in each block; needs an rng "dropout" if not 0.

  Example:
    >>> import jax
    >>> model, x = ViT(num_classes=10), jax.ShapeDtypeStruct((2, 32, 32, 3), float)
    >>> jax.eval_shape(lambda key, x: model.init_with_output(key, x)[0], jax.random.key(0), x).shape
    (2, 10)
  """

  num_classes: int
  patch: int = 4
  dim: int = 192
  depth: int = 6
  heads: int = 3
  mlp_ratio: int = 4
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Computes logits.

    Args:
      x: (batch, height, width, features) float32; the sides are multiples of `patch`.
      train: whether to drop out.
      valid: (batch,) bool, unused here; models with batch norm need it.

    Returns:
      (batch, num_classes) float32.

    Raises:
      ValueError: the sides are no multiples of `patch`, or `dim` is none of `heads`.
    """
    if self.dim % self.heads:
      raise ValueError(f"{self.heads} heads cannot share {self.dim} features evenly")
    x = nn.Dense(self.dim, name="embed")(_patches(x, self.patch))
    x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for _ in range(self.depth):
      x = EncoderBlock(self.heads, self.mlp_ratio, self.dropout)(x, train=train)
    x = jnp.mean(layer_norm()(x), axis=1)
    return nn.Dense(self.num_classes, name="head")(x)


def layer_norm() -> nn.LayerNorm:
  """Makes the layer norm of transformers, of the exact variance."""
  return nn.LayerNorm(use_fast_variance=False)


def _patches(x: jax.Array, side: int) -> jax.Array:
  """(batch, patches, side * side * features), row by row."""
  batch, height, width, features = x.shape
  if height % side or width % side:
    raise ValueError(f"an image of {height} x {width} has no whole patches of {side} x {side}")
  x = x.reshape(batch, height // side, side, width // side, side, features)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, side * side * features)
