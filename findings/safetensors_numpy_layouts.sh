#!/usr/bin/env bash
# safetensors 0.8.0: safetensors.numpy saves a transposed array as something else, and cannot load the
# bfloat16 that it saves.
#
# Expected: the array that was saved, or an error where its memory is not in C order.
# Seen: the bytes are written in the order in which they are in memory, under the shape of the view,
# so that a transposed array comes back with its entries in other places, without a word. bfloat16
# (of ml_dtypes) is saved, and loading the file is a KeyError. A program has to make contiguous copies,
# and to read bfloat16 from the bytes that `safetensors.deserialize` gives.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
"$place/venv/bin/python" - <<'PYTHON_END'
import ml_dtypes
import numpy as np
from safetensors.numpy import load, save

x = np.arange(6, dtype=np.float32).reshape(2, 3)
found = load(save({"x": x.T}))["x"]
print(f"saved {x.T.tolist()}, found {found.tolist()}")
assert found.shape == (3, 2) and not np.array_equal(found, x.T), "transposed arrays are right now"
assert np.array_equal(load(save({"x": np.ascontiguousarray(x.T)}))["x"], x.T)
content = save({"x": x.astype(ml_dtypes.bfloat16)})
try:
  load(content)
except KeyError as error:
  print(f"bfloat16: saved {len(content)} bytes, loading is a KeyError: {error}")
else:
  raise AssertionError("bfloat16 can be loaded now")
PYTHON_END
