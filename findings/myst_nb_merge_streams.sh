#!/usr/bin/env bash
# myst-nb 1.4.0: nb_merge_streams ends a line wherever a stream was cut into messages.
#
# Expected of a cell that writes "one, ", flushes, and writes "two": the line "one, two", as without
# the option, and as nbconvert and Jupyter show it. Where a stream is cut tells nothing.
# Seen: "one," and "two" on lines of their own, spaces at the end of a message gone too. IPython's
# `%%sh` and `%%bash` pass on what a command writes in pieces of 100 bytes, so tables and long lines of
# commands come out broken. A cell has to write all at once, as one `print` does.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet myst-nb==1.4.0 sphinx==9.0.4
mkdir "$place/docs"
cat >"$place/docs/conf.py" <<'PYTHON_END'
extensions = ["myst_nb"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_merge_streams = True
PYTHON_END
cat >"$place/docs/index.md" <<'PAGE_END'
---
file_format: mystnb
kernelspec:
  name: python3
---

# Streams

```{code-cell} ipython3
print("one, ", end="", flush=True)
print("two")
```
PAGE_END
"$place/venv/bin/python" -m sphinx -q -b text "$place/docs" "$place/text"
cat "$place/text/index.txt"
if grep -q "one, two" "$place/text/index.txt"; then
  echo "the line is whole now"
  exit 1
fi
grep -A1 "one,$" "$place/text/index.txt" | grep -q "two"
