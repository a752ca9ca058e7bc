#!/usr/bin/env bash
# Sphinx 9.0.4: autosummary makes no pages for a file that is new since the last build.
#
# Expected of a documentation that is built, gets a new file with an `autosummary` of a toctree, and is
# built again into the same folder: what a first build of it gives, with the pages of the new names.
# Seen: "autosummary: stub file not found" for each of them, and no pages, as `autosummary_generate =
# True` takes the list of files that the last build has kept. A third build makes them, but in no
# toctree. A list of the files in `autosummary_generate` makes them at once.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet sphinx==9.0.4
mkdir "$place/docs"
echo 'extensions = ["sphinx.ext.autosummary"]' >"$place/docs/conf.py"
printf '%s\n' Index ===== '' '.. toctree::' '   :glob:' '' '   *' >"$place/docs/index.rst"

build() {
  "$place/venv/bin/python" -m sphinx -q -b text "$place/docs" "$place/$1" 2>&1
}

build again
printf '%s\n' New === '' '.. autosummary::' '   :toctree: names' '' '   math.floor' >"$place/docs/new.rst"
second="$(build again)"
echo "$second"
if ! grep -q "stub file not found 'math.floor'" <<<"$second"; then
  echo "the second build makes the pages now"
  exit 1
fi
test ! -e "$place/docs/names"
third="$(build again)"
echo "$third"
grep -q "math.floor.rst: WARNING: document isn't included in any toctree" <<<"$third"
rm -r "$place/docs/names"
first="$(build anew)"
test -z "$first" -a -e "$place/anew/names/math.floor.txt"
