#!/usr/bin/env bash
# jax 0.10.2: `jax.export` refuses a program that holds `with_layout_constraint`, on every platform.
#
# `jax.experimental.layout.with_layout_constraint` inside of `jax.jit` says in which order the axes of
# an array lie in memory, so that a loop is given what the operations around it read fastest.
# Expected: a program with one is exported, and runs with that layout or without it.
# Seen: `jax.export.export` raises ValueError, "Cannot serialize code with custom calls whose targets
# have no compatibility guarantees", and names LayoutConstraint, which jax itself emits for this call.
# With `disabled_checks=[DisabledSafetyCheck.custom_call("LayoutConstraint")]` the program is exported,
# read back and gives the same result. Compiled directly it needs nothing of the kind.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 flatbuffers==25.9.23
export JAX_PLATFORMS=cpu
"$place/venv/bin/python" - <<'PYTHON_END'
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint


@jax.jit
def double(x):
  return 2 * with_layout_constraint(x, Layout(major_to_minor=(1, 0)))


x = jnp.arange(6.0).reshape(2, 3)
np.testing.assert_array_equal(double(x), 2 * np.asarray(x))
try:
  jax.export.export(double)(x)
except ValueError as error:
  print("refused:", str(error).split(".")[0])
  assert "LayoutConstraint" in str(error)
else:
  raise SystemExit("a layout constraint is exported now")
check = jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")
exported = jax.export.export(double, disabled_checks=[check])(x)
again = jax.export.deserialize(exported.serialize())
np.testing.assert_array_equal(again.call(x), 2 * np.asarray(x))
print("exported with the check turned off, with the same result")
PYTHON_END
