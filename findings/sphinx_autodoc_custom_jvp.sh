#!/usr/bin/env bash
# Sphinx 9.0.4: autodoc leaves out functions with a derivative of their own (jax 0.10.2).
#
# Expected of `automodule` with `:members:` and a module of three documented functions, one plain, one
# under `jax.jit`, one under `jax.custom_jvp`: all three with their signatures. The two decorators keep
# `__doc__`, `__module__` and `__wrapped__` alike.
# Seen: the first two alone, without a warning, also with warnings as errors. Named by itself, the third
# is documented by `autodata` as a value, and by `autosummary` as data, without a signature. Functions
# have to be unwrapped (`inspect.unwrap`) before they are documented.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet sphinx==9.0.4 jax==0.10.2 jaxlib==0.10.2
mkdir "$place/docs"
cat >"$place/docs/conf.py" <<'PYTHON_END'
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
extensions = ["sphinx.ext.autodoc"]
PYTHON_END
cat >"$place/docs/halves.py" <<'PYTHON_END'
"""Three functions."""

import jax


def plain(x, share=0.5):
  """Halves."""
  return x * share


@jax.jit
def jitted(x, share=0.5):
  """Halves, compiled."""
  return x * share


@jax.custom_jvp
def differentiated(x, share=0.5):
  """Halves, with a derivative of its own."""
  return x * share


assert jitted.__wrapped__ and differentiated.__wrapped__ and differentiated.__doc__
PYTHON_END
printf '%s\n' Halves ====== '' '.. automodule:: halves' '   :members:' >"$place/docs/index.rst"
"$place/venv/bin/python" -m sphinx -q -W -b text "$place/docs" "$place/text"
cat "$place/text/index.txt"
grep -q '^halves.plain(x, share=0.5)' "$place/text/index.txt"
grep -q '^halves.jitted(x, share=0.5)' "$place/text/index.txt"
if grep -q differentiated "$place/text/index.txt"; then
  echo "custom_jvp functions are documented now"
  exit 1
fi
