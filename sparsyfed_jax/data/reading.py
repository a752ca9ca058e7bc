"""How files are read: what a name of a data set leaves open."""

from typing import NamedTuple

# "Chapter 1", "BOOK II", "Act III" and the like, alone on a line.
HEADINGS = r"(?im)^[ \t]*(chapter|book|act|part|canto|letter)[ \t]+[\divxlc]+\b.*$"


class Reading(NamedTuple):
  """How a text is read, and which columns of a table.

  Example:
    >>> READING._replace(clients="chapters").clients
    'chapters'
  """

  clients: str = "blocks"  # of a text, one of `characters.CLIENTS`
  num_clients: int = 100  # of blocks
  pattern: str = HEADINGS  # finds the headings of chapters
  columns: tuple[str, str] = ("text", "client")  # names of a CSV file's columns
  sequence_length: int = 64
  example_column: str = ""  # names of a table's columns; "" for the one that can be meant
  label_column: str = ""
  client_column: str = ""
  image_size: tuple[int, ...] = ()  # height and width to resize images to; () for as they are
  in_place: bool = False  # whether a reader may leave examples in their files, as `rows.Rows`


READING = Reading()
