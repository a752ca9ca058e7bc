"""`experiments.wire_table`: all ways to write an upload, on arrays of a test's own."""

import numpy as np
import pytest

from experiments import wire_table
from sparsyfed_jax.fed.exchange import Exchange
from sparsyfed_jax.wire import encode

pytest.importorskip("zstandard")


def exchange():
  rng = np.random.default_rng(0)
  mask = rng.random((300, 200)) < 0.05
  old = {"kernel": np.float32(rng.normal(size=mask.shape) * mask), "bias": np.ones(200, np.float32)}
  moved = np.float32(old["kernel"] * (1 + 0.03 * rng.normal(size=mask.shape)))
  return Exchange(old, {"kernel": moved, "bias": 1.01 * old["bias"]})


def test_the_wire_format_is_smaller_than_what_knows_nothing_of_it():
  pair = exchange()
  rows = {(row.dtype, row.name): row for row in wire_table.rows_of(pair)}
  assert {dtype for dtype, _ in rows} == set(wire_table.DTYPES)
  for dtype in wire_table.DTYPES:
    sizes = {name: row.size for (one, name), row in rows.items() if one == dtype}
    assert sizes["wire format"] == len(encode(pair.upload, pair.download, dtype))
    whole = sizes["wire format, differences, zstd 3"]
    assert whole < sizes["wire format, zstd 3"] < sizes["bitmap and values, zstd 19"]
    assert sizes["wire format, zstd 3"] < sizes["dense, zstd 19"]
  assert all(row.seconds >= 0 for row in rows.values())
  arrays = wire_table.arrays_of(pair.upload, "int8")
  assert [array.dtype for array in arrays] == [np.uint16, np.uint8]
  assert np.count_nonzero(arrays[1]) == np.count_nonzero(pair.upload["kernel"])


def test_the_table_names_what_it_is_of():
  lines = list(wire_table.lines_of(exchange(), "small", 7))
  assert lines[0].startswith("small after 7 rounds on digits: 60,200 numbers, of which 5.")
  assert sum(line.startswith("| wire format") for line in lines) == 4 * len(wire_table.DTYPES)
  row = next(line for line in lines if line.startswith("| wire format | float32"))
  size, share = row.split(" | ")[2:4]
  assert float(share) == pytest.approx(4 * 60_200 / int(size.replace(",", "")), abs=0.06)
