"""The wire format: models as bytes, their sizes, and values in fewer bits."""

from sparsyfed_jax.wire.codec import decode, encode
from sparsyfed_jax.wire.levels import Levels, dequantise, quantise
from sparsyfed_jax.wire.reader import CodecError
from sparsyfed_jax.wire.rounding import round_to_wire
from sparsyfed_jax.wire.size import payload_bytes

__all__ = [
  "CodecError",
  "Levels",
  "decode",
  "dequantise",
  "encode",
  "payload_bytes",
  "quantise",
  "round_to_wire",
]
