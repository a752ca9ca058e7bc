#!/usr/bin/env bash
# optax 0.2.8: `eps` of `adagrad` and `rmsprop` is added inside the square root, that of `adam` and
# `yogi` outside; so the same number means another thing.
#
# Expected of a first step at rate 1 with a gradient of 1e-3 and eps = 1e-3, accumulator from 0: half
# the rate, 1e-3 / (1e-3 + 1e-3) = 0.5, as adam does.
# Seen: 0.0316 = 1e-3 / sqrt(1e-6 + 1e-3): what counts is sqrt(eps), here 0.03, thirty times the
# gradient. `rmsprop` has `eps_in_sqrt=False` to change that, `adagrad` has no such argument. FedOpt's
# tau (Reddi et al., ICLR 2021) is therefore not adagrad's `eps`.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2
"$place/venv/bin/python" - <<'PYTHON_END'
import inspect

import jax.numpy as jnp
import optax

gradient = jnp.full((1,), 1e-3)


def first_step(optimizer):
  updates, _ = optimizer.update(gradient, optimizer.init(gradient))
  return -float(updates[0])


adagrad = first_step(optax.adagrad(1.0, initial_accumulator_value=0.0, eps=1e-3))
adam = first_step(optax.adam(1.0, eps=1e-3))
rmsprop = first_step(optax.rmsprop(1.0, decay=0.0, eps=1e-3))
outside = first_step(optax.rmsprop(1.0, decay=0.0, eps=1e-3, eps_in_sqrt=False))
print(f"adagrad {adagrad:.4f}, rmsprop {rmsprop:.4f}, eps_in_sqrt=False {outside:.4f}, adam {adam:.4f}")
assert abs(adagrad - 0.0316) < 1e-4 and abs(rmsprop - 0.0316) < 1e-4, "eps has moved"
assert abs(adam - 0.5) < 1e-4 and abs(outside - 0.5) < 1e-4, "eps has moved"
assert "eps_in_sqrt" not in inspect.signature(optax.adagrad).parameters, "adagrad has a choice now"
PYTHON_END
