#!/usr/bin/env bash
# datasets 4.8.5: load_from_disk reads a file that was cut short as if it were whole.
#
# Expected: an error where a data file of `save_to_disk` ends before it should, as for a copy that
# was interrupted; the folder says nowhere how many examples there are.
# Seen: a file is a stream of Arrow, a message for each 1,000 examples. Cut behind one of these it is
# loaded without a word, with 2,000 of the 5,000 examples; only a cut within a message is an error.
# pyarrow's open_stream takes the end of a file for the end of the stream, though `save_to_disk` wrote
# an end-of-stream mark of 8 bytes, whose absence tells.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet datasets==4.8.5 pyarrow==26.0.1 numpy==2.4.6
HOME="$place" HF_HUB_OFFLINE=1 "$place/venv/bin/python" - "$place" <<'PYTHON_END'
import pathlib
import sys

import datasets
import pyarrow as pa

datasets.disable_progress_bars()
folder = pathlib.Path(sys.argv[1], "data")
datasets.Dataset.from_dict({"x": list(range(5000))}).save_to_disk(folder)
file = folder / "data-00000-of-00001.arrow"
whole = file.read_bytes()
assert whole.endswith(b"\xff\xff\xff\xff\0\0\0\0"), "there is no mark of the end any more"
source = pa.BufferReader(whole)
stream = pa.ipc.open_stream(source)
sizes = [stream.read_next_batch().num_rows for _ in range(2)]
file.write_bytes(whole[: source.tell()])
found = len(datasets.load_from_disk(folder))
print(f"{len(whole)} bytes hold 5000 examples; of the first {source.tell()} are read {found}")
assert found == sum(sizes) < 5000, "a file that was cut short is noticed now"
PYTHON_END
