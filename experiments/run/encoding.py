"""Bytes that are measured: of models as they are encoded, with and without a second stage."""

from typing import Any, NamedTuple

import numpy as np

from sparsyfed_jax.fed.exchange import Exchange
from sparsyfed_jax.wire import encode
from sparsyfed_jax.wire.rounding import wire_dtypes

_LEVEL = 3  # of zstd: each one above takes longer for very little


class Measured(NamedTuple):
  """The bytes of an exchange, without and with the second stage."""

  plain_uplink_bytes: int
  plain_downlink_bytes: int
  measured_uplink_bytes: int
  measured_downlink_bytes: int


def measure(exchange: Exchange, wire_dtype: Any) -> Measured:
  """Encodes an exchange, the upload against the download, on the host.

  Args:
    exchange: NumPy arrays.
    wire_dtype: of uploads.
  """
  model_dtype, upload_dtype = (np.dtype(one) for one in wire_dtypes(wire_dtype))
  download, upload = exchange
  return Measured(
    len(encode(upload, download, upload_dtype)),
    len(encode(download, None, model_dtype)),
    len(encode(upload, download, upload_dtype, compression_level=_LEVEL, differences=True)),
    len(encode(download, None, model_dtype, compression_level=_LEVEL)),
  )
