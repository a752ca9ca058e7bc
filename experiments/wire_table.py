"""Bytes of one client's upload in all ways to write it: `python -m experiments.wire_table`.

Trains the default method for a few rounds on digits and takes what a client receives and sends in
the next one. Prints Markdown: the wire format with and without its second stage, and beside it
general compressors of the same arrays. Brotli is left out where its package is missing.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, logging
from absl import flags as absl_flags

from experiments import flags
from experiments.run.build import build
from experiments.run.environment import describe_environment
from sparsyfed_jax.fed.exchange import Exchange
from sparsyfed_jax.wire import decode, encode, levels
from sparsyfed_jax.wire.rounding import LEVEL_BITS, sent_dtype

# As on CIFAR-10 in the paper a client takes some dozens of steps, though on fewer images.
SETTINGS: dict[str, Any] = dict(
  model="resnet18",
  sparsity=0.95,
  sparsity_schedule="constant",
  num_clients=20,
  clients_per_round=3,
  local_epochs=5,
  wire_codec="zstd",
)
DTYPES = ("float32", "bfloat16", "int8", "int4")
_REPEATS = 5
_LEVEL = 3  # of zstd, in the second stage
_MOST = 19
_BROTLI = 9


class Row(NamedTuple):
  """A way to write an upload."""

  name: str
  dtype: str
  size: int  # bytes
  seconds: float | None  # of a core, to write and to read; None where it was not measured


def main(argv: Sequence[str]) -> None:
  """Trains, encodes and prints."""
  del argv
  table = absl_flags.FLAGS
  rounds, model = int(str(table["rounds"].value)), str(table["model"].value)
  if rounds < 1:
    flags.fail(ValueError(f"--rounds={rounds}: must be at least 1"))
  try:
    exchange = train(rounds, model)
  except flags.ConfigError as error:
    flags.fail(error)
  print(table_of(exchange, model, rounds))


def train(rounds: int, model: str) -> Exchange:
  """Trains, and takes what a client exchanges in the next round; NumPy arrays."""
  config = flags.DEFAULTS._replace(**{**SETTINGS, "model": model, "rounds": 10 * rounds})
  config = flags.resolve(config)
  flags.check(config)
  made = build(config)
  assert made.exchange is not None
  state = made.simulation.init(made.hyper, made.keys.init)
  for _ in range(rounds):
    state, _ = made.simulation.run(state, made.federation, made.keys.rounds, np.int32(1))
  return Exchange(*jax.device_get(jax.jit(made.exchange)(state, made.federation, made.keys.rounds)))


def table_of(exchange: Exchange, model: str, rounds: int) -> str:
  """Writes Markdown: how large an upload is, of all dtypes and in all ways."""
  leaves = jax.tree.leaves(exchange.upload)
  dense = sum(4 * leaf.size for leaf in leaves)
  nonzero = sum(np.count_nonzero(leaf) for leaf in leaves) / sum(leaf.size for leaf in leaves)
  lines = [
    f"{model} after {rounds} rounds on digits: {dense // 4:,} numbers, of which {nonzero:.2%} are"
    f" not 0; dense float32 are {dense:,} bytes.",
    "",
    "| upload as | values | bytes | dense float32 / it | written and read in, s |",
    "|---|---|---:|---:|---:|",
  ]
  for row in rows_of(exchange):
    seconds = "" if row.seconds is None else f"{row.seconds:.2f}"
    share = dense / row.size
    lines.append(f"| {row.name} | {row.dtype} | {row.size:,} | {share:.1f} | {seconds} |")
  facts = describe_environment()
  return "\n".join([*lines, "", ", ".join(f"{k} {v}" for k, v in facts.items() if v) + "."])


def rows_of(exchange: Exchange) -> Iterator[Row]:
  """Encodes an upload in all ways."""
  download, upload = exchange
  for dtype in DTYPES:
    for name, options in (
      ("wire format", {}),
      (f"wire format, zstd {_LEVEL}", {"compression_level": _LEVEL}),
      (f"wire format, differences, zstd {_LEVEL}", {"compression_level": _LEVEL, "differences": 1}),
      (f"wire format, differences, zstd {_MOST}", {"compression_level": _MOST, "differences": 1}),
    ):
      yield _ours(name, dtype, upload, download, {"value_dtype": dtype, **options})
    yield from _others(dtype, arrays_of(upload, dtype))


def arrays_of(upload: Any, dtype: str) -> list[np.ndarray]:
  """Makes the arrays that others compress: the same values, dense."""
  arrays = []
  for leaf in jax.tree.leaves(upload):
    leaf = np.where(leaf == 0, np.zeros_like(leaf), leaf)  # no -0.0, which is no zero to others
    sent = sent_dtype(leaf.dtype, leaf.ndim, np.dtype(dtype))
    if sent.name in LEVEL_BITS:
      flat = leaf.reshape(-1)
      arrays.append(levels.codes_of(flat, *levels.ends_of(flat), LEVEL_BITS[sent.name]))
    else:
      arrays.append(leaf.astype(sent).reshape(-1).view(f"u{sent.itemsize}"))
  return arrays


def _ours(name: str, dtype: str, upload: Any, download: Any, options: dict[str, Any]) -> Row:
  options |= {"differences": bool(options.get("differences"))}
  seconds = []
  for _ in range(_REPEATS):
    start = time.process_time()
    payload = encode(upload, download, **options)
    decode(payload, download)
    seconds.append(time.process_time() - start)
  return Row(name, dtype, len(payload), statistics.median(seconds))


def _others(dtype: str, arrays: Sequence[np.ndarray]) -> Iterator[Row]:
  whole = b"".join(array.tobytes() for array in arrays)
  masks = b"".join(np.packbits(array != 0).tobytes() for array in arrays)
  values = b"".join(array[array != 0].tobytes() for array in arrays)
  zstd = importlib.import_module("zstandard")

  def of_zstd(data: bytes) -> bytes:
    return bytes(zstd.ZstdCompressor(level=_MOST).compress(data))

  undo = zstd.ZstdDecompressor().decompress
  yield _timed(f"dense, zstd {_MOST}", dtype, [whole], of_zstd, undo)
  try:
    brotli = importlib.import_module("brotli")
  except ImportError:
    pass
  else:
    yield _timed(
      f"dense, brotli {_BROTLI}",
      dtype,
      [whole],
      lambda data: bytes(brotli.compress(data, quality=_BROTLI, lgwin=24)),
      brotli.decompress,
    )
  yield _timed(f"bitmap and values, zstd {_MOST}", dtype, [masks, values], of_zstd, undo)


def _timed(
  name: str,
  dtype: str,
  parts: Sequence[bytes],
  compress: Callable[[bytes], bytes],
  decompress: Callable[[bytes], Any],
) -> Row:
  start = time.process_time()
  packed = [compress(part) for part in parts]
  for one in packed:
    decompress(one)
  return Row(name, dtype, sum(map(len, packed)), time.process_time() - start)


if __name__ == "__main__":
  absl_flags.DEFINE_integer("rounds", 3, "that are trained before")
  absl_flags.DEFINE_string("model", "resnet18", "one of those of experiments.train")
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
