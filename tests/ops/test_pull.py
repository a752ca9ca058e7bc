"""Gradients through the parameters, kept or made anew."""

import jax
import jax.numpy as jnp
import numpy as np

from sparsyfed_jax import ops
from sparsyfed_jax.ops.backend import pull


def powers(theta):
  return [ops.powerprop(leaf, 1.25) for leaf in theta]


def test_both_forms_are_the_gradient():
  rng = np.random.default_rng(0)
  theta, cotangent = ([rng.standard_normal(shape) for shape in [(3, 4), (5,)]] for _ in range(2))
  theta[0][0], theta[1][0] = 0.0, -0.0
  theta, cotangent = jax.tree.map(jnp.float32, (theta, cotangent))

  def of(form):
    kept = jax.vjp(powers, theta)[1]
    return form(kept, theta, cotangent, powers)

  slopes = [1.25 * np.abs(leaf) ** 0.25 for leaf in theta]
  for form in (pull._kept, pull._anew):
    for found, slope, ct in zip(
      jax.jit(of, static_argnums=0)(form), slopes, cotangent, strict=True
    ):
      np.testing.assert_allclose(found, slope * ct, rtol=1e-6, atol=0)


def test_a_gpu_makes_it_anew():
  def gradient(theta, cotangent):
    return pull.pull_back(powers, jax.vjp(powers, theta)[1], theta, cotangent)

  shapes = [jax.ShapeDtypeStruct((3, 4), jnp.float32)]

  def barriers(platform):
    exported = jax.export.export(jax.jit(gradient), platforms=[platform])(shapes, shapes)
    return exported.mlir_module().count("stablehlo.optimization_barrier")

  assert [barriers(platform) for platform in ("cuda", "tpu", "cpu")] == [1, 0, 0]
