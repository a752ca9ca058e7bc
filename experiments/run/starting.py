"""The flags that say from which weights a run starts, and which of them stay as they are."""

from typing import Annotated, Any, NamedTuple

from sparsyfed_jax.fed.method import Knob, Pattern

KINDS = "the folder of a run, a model file (.sfed), a .safetensors file, or a folder of orbax"


class Starting(NamedTuple):
  """Flags of a run, besides those of `Config` and of its method."""

  init_from: Annotated[
    str | None,
    Knob(
      f"weights to start from: {KINDS}; all parameters of the model must be there, with their"
      " shapes, and nothing else; default: drawn"
    ),
  ] = None
  init_exclude: Annotated[
    str,
    Pattern(
      "a regular expression, found in the paths of what --init_from leaves as it is drawn, such as"
      " head; empty for none"
    ),
  ] = ""
  freeze: Annotated[
    str,
    Pattern(
      "a regular expression, found in the paths of the parameters that stay as --init_from has"
      " them: they are neither trained nor pruned nor sent; empty for none"
    ),
  ] = ""


def starting_of(config: Any) -> Starting:
  """Collects these flags of a run."""
  return Starting(*(getattr(config, name) for name in Starting._fields))
