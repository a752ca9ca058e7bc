#!/usr/bin/env bash
# jax 0.10.2: an entry of the persistent compilation cache is written in place, under its final name.
#
# Expected: an entry that appears in one step (written beside and renamed), as caches on disk that
# several processes share do, since runs and test workers on one machine share this one.
# Seen: the file is opened for writing by its final name and nothing is renamed. Another process
# that compiles the same program at this moment reads the part that is there: a UserWarning, "Error
# reading persistent compilation cache entry", and it compiles by itself; where warnings are errors,
# it ends. The result is right either way. With jax_persistent_cache_min_compile_time_secs=0, when
# many processes start with the same small programs, this happens in practice.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat >"$place/program.py" <<'PYTHON_END'
import os
import pathlib
import sys
import warnings

import jax
import jax.numpy as jnp

cache = pathlib.Path(sys.argv[1])
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
opened, renamed = [], []


def watch(event, arguments):
  if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
    if arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(cache) in str(arguments[0]):
      opened.append(str(arguments[0]))
  if event == "os.rename" and str(cache) in str(arguments[0]):
    renamed.append(arguments[1])


sys.addaudithook(watch)
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter("always")
  value = jax.jit(lambda x: jnp.sin(x) * 2 + 1)(jnp.float32(0))
entries = [name for name in opened if "lambda" in name and name.endswith("-cache")]
said = [str(w.message).partition(" for ")[0] for w in caught if "persistent" in str(w.message)]
print("written in place:", len(entries), "renamed:", len(renamed), "warnings:", said)
assert float(value) == 1.0
if sys.argv[2] == "new":
  (entry,) = entries
  assert os.path.exists(entry) and not renamed and not said
  with open(entry, "r+b") as file:  # what another process sees while the file is being written
    file.truncate(os.path.getsize(entry) // 2)
else:
  assert said == ["Error reading persistent compilation cache entry"]
PYTHON_END
"$place/venv/bin/python" "$place/program.py" "$place/cache" new
"$place/venv/bin/python" "$place/program.py" "$place/cache" partial
