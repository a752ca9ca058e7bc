#!/usr/bin/env bash
# jimmy-vision 0.0.7 (vision models for flax.nnx): installs beside flax 0.12.8, and its models cannot be
# imported.
#
# Expected: a package whose requirement of flax has no upper bound works with the flax that pip brings.
# Seen: `import jimmy.models` is a ModuleNotFoundError, as jimmy.layers imports `flax.nnx.nnx`, a folder
# that flax dropped. Its models cannot be trained on any flax that this project allows (0.12.7 or newer).
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet jimmy-vision==0.0.7 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
"$place/venv/bin/python" - <<'PYTHON_END'
import importlib.metadata

needs = [line for line in importlib.metadata.requires("jimmy-vision") if line.startswith("flax")]
print("it asks for", needs)
assert all("<" not in line and "==" not in line for line in needs), needs
try:
  import jimmy.models
except ModuleNotFoundError as error:
  print(f"import jimmy.models: {error}")
  assert str(error) == "No module named 'flax.nnx.nnx'", error
else:
  raise AssertionError("it can be imported now")
PYTHON_END
