#!/usr/bin/env bash
# jax 0.10.2: a function under `jax.jit` is traced again inside the context of an equation whose
# settings are those that are in force anyway.
#
# Expected of evaluating a jaxpr equation by equation, each inside `equation.ctx.manager` as
# `jax.core.eval_jaxpr` does: functions under `jax.jit` that are called meanwhile are taken from the
# cache, as nothing differs.
# Seen: the context of the equation is the very object that an equation gets that is made now, outside
# and inside of it, but inside a jitted function is traced a second time (and only a second time: inside
# again it is cached). The cache's key tells settings that were set for a thread from equal ones that are
# defaults. Whoever transforms jaxprs pays for it in the time of tracing: 8 % of a training program.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
"$place/venv/bin/python" - <<'PYTHON_END'
import jax
from jax.extend import core

traced = []


@jax.jit
def double(x):
  traced.append(x)
  return 2 * x


(equation,) = jax.make_jaxpr(jax.numpy.negative)(1.0).eqns


def settings_now():
  return core.new_jaxpr_eqn([], [], equation.primitive, {}, core.no_effects).ctx


double(1.0)
double(1.0)
outside = len(traced)
assert settings_now() is equation.ctx
with equation.ctx.manager:
  assert settings_now() is equation.ctx
  double(1.0)
  double(1.0)
print("traces outside:", outside, "and inside:", len(traced) - outside)
assert outside == 1
assert len(traced) == 2, "what was traced outside is found inside now"
PYTHON_END
