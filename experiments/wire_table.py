"""Bytes of one client's upload in all ways to write it: `python -m experiments.wire_table`.

Trains the default method at 95 % for a few rounds on digits and takes what a client receives and
sends in the next one. Prints Markdown: the wire format with and without its second stage, and
beside it general compressors of the same arrays. Brotli is left out where its package is missing.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging
from absl import flags as absl_flags

import sparsyfed_jax as sf
from experiments import flags
from experiments.run.environment import describe_environment
from sparsyfed_jax.algorithms import METHODS, OURS
from sparsyfed_jax.fed.cohort import data_of
from sparsyfed_jax.fed.exchange import Exchange
from sparsyfed_jax.fed.sampling import Cohort
from sparsyfed_jax.fed.server import alike
from sparsyfed_jax.wire import decode, encode, levels
from sparsyfed_jax.wire.rounding import LEVEL_BITS, sent_dtype

MODELS = {"cnn": sf.models.CNN, "resnet18": sf.models.ResNet18}
_CLIENTS = 20  # of 70 images each
_PER_ROUND = 3
_EPOCHS = 5  # some dozens of steps, as on CIFAR-10 in the paper
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
  seconds: float  # of a core, to write and to read


def main(argv: Sequence[str]) -> None:
  """Trains, encodes and prints."""
  del argv
  table = absl_flags.FLAGS
  rounds, model = int(str(table["rounds"].value)), str(table["model"].value)
  if rounds < 1:
    flags.fail(ValueError(f"--rounds={rounds}: must be at least 1"))
  if model not in MODELS:
    flags.fail(ValueError(f"--model={model}: must be one of {', '.join(MODELS)}"))
  for line in lines_of(train(rounds, model), model, rounds):
    print(line, flush=True)


def train(rounds: int, model: str) -> Exchange:
  """Trains, and takes what a client exchanges in the round after that; NumPy arrays.

  The clients are trained one after the other by one compiled function.
  """
  data = sf.data.digits(seed=0)
  clients = sf.data.dirichlet(data, num_clients=_CLIENTS, alpha=1.0, seed=0)
  task = sf.classification(MODELS[model](data.num_classes), data)
  method = METHODS[OURS](sparsity=0.95, sparsity_schedule="constant")

  run = sf.simulate(
    method, task, clients, rounds=10 * rounds, local_epochs=_EPOCHS, client_weight=alike
  )
  train_client, step = jax.jit(run.algorithm.client), jax.jit(run.algorithm.server)
  state = run.init(seed=0)

  def upload_of(server: Any, number: int) -> tuple[Any, Any]:
    member = Cohort(*map(jnp.asarray, (number, True, np.float32(1), number)))
    download = run.algorithm.broadcast(server)
    key = jax.random.fold_in(jax.random.fold_in(state.key, server.round), number)
    upload, *_ = train_client(download, (), data_of(run.federation, member), key)
    return download.variables, upload

  server = state.server
  for first in range(0, rounds * _PER_ROUND, _PER_ROUND):
    numbers = [number % _CLIENTS for number in range(first, first + _PER_ROUND)]
    uploads = [upload_of(server, number)[1] for number in numbers]
    server, _ = step(server, jax.tree.map(lambda *leaves: sum(leaves), *uploads))
  download, upload = upload_of(server, _CLIENTS - 1)
  return Exchange(*jax.device_get((download, upload.variables)))  # whose weight is 1


def lines_of(exchange: Exchange, model: str, rounds: int) -> Iterator[str]:
  """Writes Markdown: how large an upload is, of all dtypes and in all ways."""
  leaves = jax.tree.leaves(exchange.upload)
  size = sum(leaf.size for leaf in leaves)
  nonzero = sum(np.count_nonzero(leaf) for leaf in leaves) / size
  yield (
    f"{model} after {rounds} rounds on digits: {size:,} numbers, of which {nonzero:.2%} are not 0;"
    f" dense float32 are {4 * size:,} bytes. All on one core, medians of {_REPEATS} of the wire"
    " format."
  )
  yield ""
  yield "| upload as | values | bytes | dense float32 / it | written and read in, s |"
  yield "|---|---|---:|---:|---:|"
  for row in rows_of(exchange):
    share = f"{4 * size / row.size:.1f}"
    yield f"| {row.name} | {row.dtype} | {row.size:,} | {share} | {row.seconds:.2f} |"
  facts = describe_environment()
  yield ""
  yield f"{facts['device']}; " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) + "."


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
  absl_flags.DEFINE_string("model", "resnet18", "cnn or resnet18")
  logging.set_verbosity(logging.WARNING)
  app.run(main, flags_parser=flags.parse)
