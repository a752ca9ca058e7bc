#!/usr/bin/env bash
# optax 0.2.8: `clip_by_global_norm` makes large finite gradients 0.
#
# Expected of four entries of 3e19 and a largest norm of 1: an update of norm 1, 0.5 in each entry.
# Seen: 0 in each entry, without a word. Every entry is finite, but its square is not in float32
# (beyond 1.8e19), so the norm is infinite and the gradient is divided by it. A step whose gradient
# explodes is thus skipped as if it had been 0. Scaled by the largest magnitude first, the update is
# right; `optax.apply_if_finite` around it sees nothing, because 0 is finite.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
"$place/venv/bin/python" - <<'PYTHON_END'
import jax.numpy as jnp
import optax

clip = optax.clip_by_global_norm(1.0)
small, large = jnp.full((4,), 1e18), jnp.full((4,), 3e19)
for gradient in (small, large):
  update, _ = clip.update(gradient, clip.init(gradient))
  print(f"entries of {float(gradient[0]):.0e}: update {update.tolist()}")
  if gradient is small:
    assert jnp.allclose(update, 0.5)
  else:
    assert not update.any(), "large gradients are clipped now"
PYTHON_END
