#!/usr/bin/env bash
# optax 0.2.8: the state of momentum changes its dtype after one step where parameters are bfloat16
# and weight decay is a float32 array.
#
# Expected of add_decayed_weights and sgd with momentum on bfloat16 parameters: a state of the same
# dtypes before and after a step, so that steps can be a `lax.scan` or `lax.fori_loop`.
# Seen: `init` makes a bfloat16 trace, `update` returns a float32 one, and the loop is refused with a
# TypeError about its carry. A Python float as the coefficient keeps bfloat16, so the fault appears
# only once the coefficient is traced, in a sweep over it, say. `accumulator_dtype=jnp.float32` makes
# both float32; adamw keeps its dtypes by itself.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
"$place/venv/bin/python" - <<'PYTHON_END'
import jax
import jax.numpy as jnp
import optax

params = jnp.ones(3, jnp.bfloat16)


def dtypes(decay, **options):
  optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1, 0.9, **options))
  before = optimizer.init(params)
  _, after = optimizer.update(params, before, params)
  return [str(jax.tree.leaves(state)[0].dtype) for state in (before, after)]


python, array = dtypes(1e-3), dtypes(jnp.float32(1e-3))
chosen = dtypes(jnp.float32(1e-3), accumulator_dtype=jnp.float32)
print("decay a Python float:", python, "a float32 array:", array, "accumulator_dtype:", chosen)
assert python == ["bfloat16", "bfloat16"]
assert array == ["bfloat16", "float32"], "the trace keeps its dtype now"
assert chosen == ["float32", "float32"]
PYTHON_END
