"""A small LSTM for tokens (Hochreiter & Schmidhuber, 1997), characters say."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


class Recurrence(nn.Module):
  """Runs the gates of an LSTM over time, with the forget gate open by 1 at first.

  Attributes:
    hidden: width of the state.
  """

  hidden: int

  @nn.compact
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Maps what inputs add to the gates, (batch, length, 4 hidden), to states, (..., hidden)."""
    shape = (self.hidden, 4 * self.hidden)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)

    def step(
      carry: tuple[jax.Array, jax.Array], own: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
      cell, state = carry
      gates = own + lax.dot(state, kernel)
      enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
      cell = nn.sigmoid(forget + 1) * cell + nn.sigmoid(enter) * jnp.tanh(new)
      state = nn.sigmoid(leave) * jnp.tanh(cell)
      return (cell, state), state

    zeros = jnp.zeros((inputs.shape[0], self.hidden), inputs.dtype)
    _, states = lax.scan(step, (zeros, zeros), jnp.swapaxes(inputs, 0, 1))
    return jnp.swapaxes(states, 0, 1)


class LSTM(nn.Module):
  """Layers of LSTM cells over tokens.

  All its weights are kernels of dense layers, but for the embedding and biases: in each layer that
  of the inputs, `input_0`, and that of the states, `recurrent_0`.

  Attributes:
    num_classes: tokens of the vocabulary.
    dim: features of a token.
    hidden: width of each layer's state.
    depth: layers.

  Example:
    >>> import jax
    >>> model, x = LSTM(num_classes=50), jax.ShapeDtypeStruct((2, 16), int)
    >>> jax.eval_shape(lambda key, x: model.init_with_output(key, x)[0], jax.random.key(0), x).shape
    (2, 16, 50)
  """

  num_classes: int
  dim: int = 64
  hidden: int = 128
  depth: int = 1

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, valid: jax.Array | None = None
  ) -> jax.Array:
    """Computes logits of the token that follows each.

    Args:
      x: (batch, length) int32 tokens.
      train: unused here; models with batch norm or dropout need it.
      valid: (batch,) bool, unused here; models with batch norm need it.

    Returns:
      (batch, length, num_classes) float32.
    """
    x = nn.Embed(self.num_classes, self.dim, name="embed")(x)
    for i in range(self.depth):
      gates = nn.Dense(4 * self.hidden, name=f"input_{i}")(x)
      x = Recurrence(self.hidden, name=f"recurrent_{i}")(gates)
    return nn.Dense(self.num_classes, name="head")(x)
