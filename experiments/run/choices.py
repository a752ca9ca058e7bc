"""The values that flags may have, and what marks the flags themselves."""

from typing import Literal

from sparsyfed_jax.data.shift import SHIFTS
from sparsyfed_jax.fed.devices import PLACEMENTS
from sparsyfed_jax.fed.method import Choice, Knob

MODELS = ("mlp", "cnn", "resnet18", "speech_resnet18", "vit", "transformer", "lstm")
NORMS = ("batch", "group")
PARTITIONS = (
  *("dirichlet", "dirichlet_symmetric", "dirichlet_per_class"),
  *("iid", "shards", "power_law", "natural"),
)
CLIENT_OPTIMIZERS = ("sgd", "nesterov", "adamw")
COMPUTE_DTYPES = ("float32", "tf32", "bfloat16")
WIRE_DTYPE = Choice(
  "of values on the wire, to which models are rounded in both directions: float32, bfloat16 or"
  " float16; or, of what clients send, int8 or int4 (levels of each layer, at random and without"
  " bias), and bfloat16 of all else",
  ("float32", "bfloat16", "float16", "int8", "int4"),
)
WIRE_CODECS = ("plain", "zstd")
WIRE_CODEC = Choice(
  "how models are written: plain (zeros left out; all columns of bytes are of it) or zstd (and what"
  " is left coded, as differences to what the receiver has: what that gains is measured at every"
  " evaluation, on one client of the next round, who is trained once more for it)",
  WIRE_CODECS,
)
AUTO: Literal["auto"] = "auto"
# Marks of settings that are values of the state or of the data, and leave the compiled programs
# alone; and of those that change no result, so that a resumed run may change them.
VALUE, FREE = "value", "free"

FILE = "file:"  # how a partition begins that is read
PARTITION = Knob(
  "how the training data is dealt to the clients: dirichlet (equal sizes, class frequencies"
  " of each client ~ Dirichlet(--dirichlet_alpha * classes * frequency of the class)),"
  " dirichlet_symmetric (~ Dirichlet(--dirichlet_alpha), as in the paper: the same where"
  " classes are equally frequent; where not, some clients get nothing but the frequent ones),"
  " dirichlet_per_class (sizes vary too), iid, shards (--shards_per_client of the sorted"
  " data), power_law (sizes ~ rank^-exponent), natural (the file's own clients), or"
  " file:CLIENTS.csv (with a header and the columns example, counted from 0, and client). Default:"
  " dirichlet of digits, npz and tfds; otherwise natural where the data has clients (and"
  " --num_clients, --shift_round ask for no others), else dirichlet, or iid without classes",
)
PLACEMENT = Choice(
  "where training examples are: replicated (on every device), sharded (each device has some"
  " clients, and trains them), or streamed (on the host, or in the files of --dataset=folder,"
  " hf, leaf, tff, pfllib, images and speech; those of each round are sent ahead)",
  PLACEMENTS,
)
SHIFT = Choice(
  "what changes then: resplit (all examples are dealt anew), clients (other clients with the"
  " other half of the examples come in the place of those before), or labels (classes that"
  " were frequent become rare, and rare ones frequent)",
  tuple(SHIFTS),
)


class ConfigError(ValueError):
  """A flag that cannot be obeyed; the one-line message names it, its value and what is right."""
