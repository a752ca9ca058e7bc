"""Runs at the start of a page: cells of `%%sh` print all at once, as to a file.

IPython's own passes the output on in pieces, and myst-nb ends a line after each
(findings/myst_nb_merge_streams.sh). A command that fails stops the build.
"""

import os
import subprocess

from IPython import get_ipython


def sh(line: str, cell: str) -> None:
  """Runs a cell's commands up to the first that fails."""
  command = ["sh", "-ec", cell]
  ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  print(ran.stdout, end="")
  ran.check_returncode()


os.environ.pop("FORCE_COLOR", None)
get_ipython().register_magic_function(sh, "cell")
