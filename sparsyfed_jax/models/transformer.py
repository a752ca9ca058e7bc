"""A small decoder-only transformer for tokens, characters say."""

import jax
from flax import linen as nn

from sparsyfed_jax.models.vit import EncoderBlock, layer_norm


class Transformer(nn.Module):
  """Pre-norm blocks of causal attention over tokens, with learned positions.

  All its weights are kernels of dense layers, but for the embedding, positions, biases and layer
  norms.

  Attributes:
    num_classes: tokens of the vocabulary.
    dim: features of a token.
    depth: blocks.
    heads: of each attention; divides `dim`.
    mlp_ratio: width of each perceptron, in `dim`.
    dropout: rate in training, on the tokens and in each block; needs an rng "dropout" if not 0.

  Example:
    >>> import jax
    >>> model, x = Transformer(num_classes=50), jax.ShapeDtypeStruct((2, 16), int)
    >>> jax.eval_shape(lambda key, x: model.init_with_output(key, x)[0], jax.random.key(0), x).shape
    (2, 16, 50)
  """

  num_classes: int
  dim: int = 64
  depth: int = 2
  heads: int = 4
  mlp_ratio: int = 4
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Computes logits of the token that follows each.

    Args:
      x: (batch, length) int32 tokens.
      train: whether to drop out.
      valid: (batch,) bool, unused here; models with batch norm need it.

    Returns:
      (batch, length, num_classes) float32.

    Raises:
      ValueError: `dim` is no multiple of `heads`.
    """
    if self.dim % self.heads:
      raise ValueError(f"{self.heads} heads cannot share {self.dim} features evenly")
    x = nn.Embed(self.num_classes, self.dim, name="embed")(x)
    x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for _ in range(self.depth):
      block = EncoderBlock(self.heads, self.mlp_ratio, self.dropout, is_causal=True)
      x = block(x, train=train)
    return nn.Dense(self.num_classes, name="head")(layer_norm()(x))
