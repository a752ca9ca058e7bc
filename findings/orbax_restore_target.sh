#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: StandardCheckpointer.restore does not hold arrays that were saved from
# NumPy against the target that it is given.
#
# Expected of a target of shapes and dtypes (jax.ShapeDtypeStruct) that differ from what was saved: an
# error, as there is for arrays that were saved from JAX, and for another structure of the tree.
# Seen: another shape is ignored, and the array comes back in the shape in which it was saved; to
# another dtype it is cast, and 0.5 becomes the int32 0, without a word. A program that saves its
# host's arrays therefore has to compare shapes and dtypes itself, or keep a digest of the content.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
PLACE="$place" "$place/venv/bin/python" - <<'PYTHON_END'
import os
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

path = pathlib.Path(os.environ["PLACE"]) / "checkpoint"
with ocp.StandardCheckpointer() as checkpointer:
  checkpointer.save(path, {"x": np.full(6, 0.5, np.float32)})
  checkpointer.wait_until_finished()
  for shape, dtype in (((2, 2), np.float32), ((6,), np.int32)):
    x = checkpointer.restore(path, {"x": jax.ShapeDtypeStruct(shape, dtype)})["x"]
    print(f"asked for {shape} {np.dtype(dtype)}, found {x.shape} {x.dtype}, the first {x[0]}")
    assert x.shape == (6,) and x.dtype == dtype, "the target counts now"
PYTHON_END
