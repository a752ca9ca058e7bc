"""Tables of whose each example is: read as they were written; one line for a bad one."""

import numpy as np
import pytest

from sparsyfed_jax.data import assignment
from sparsyfed_jax.data.dataset import DataError


@pytest.mark.parametrize(
  "names, known",
  [(["b", "a", "b", "c"], ("a", "b", "c")), (["10", "9", "10", "11"], (9, 10, 11))],
)
def test_clients_are_numbered_in_sorted_order(tmp_path, names, known):
  rows = [f"{names[i]},{i},ignored" for i in (2, 0, 3, 1)]
  path = tmp_path / "clients.csv"
  path.write_text("\n".join(["client,example,note", *rows]), encoding="utf-8-sig")
  clients, found = assignment.read(str(path), 4)
  assert (clients.tolist(), clients.dtype, found) == ([1, 0, 1, 2], np.int32, known)


def test_what_is_written_is_read(tmp_path):
  assignment.write(tmp_path / "own.csv", np.array([3, 0, 0, 7]))
  clients, known = assignment.read(str(tmp_path / "own.csv"), 4)
  assert clients.tolist() == [1, 0, 0, 2] and known == (0, 3, 7)
  with pytest.raises(FileExistsError):
    assignment.write(tmp_path / "own.csv", np.array([1]))


def test_clients_without_examples_and_names(tmp_path):
  path = tmp_path / "own.csv"
  classes = ["cat", "dog", "cat"]
  assignment.write(path, np.array([3, -1, 1]), classes, num_clients=5, names=list("pqrst"))
  assert path.read_text().split() == [
    "example,client,class,name", "0,3,cat,s", "2,1,cat,q", ",0,,p", ",2,,r", ",4,,t",
  ]  # fmt: skip
  assignment.write(tmp_path / "all.csv", np.array([3, 3, 1]), num_clients=5)
  clients, known = assignment.read(str(tmp_path / "all.csv"), 3)
  assert clients.tolist() == [3, 3, 1] and known == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
  "content, message",
  [
    (b"example,who\n0,a\n", "client is missing in its header, which has example, who"),
    (b"", "example is missing in its header, which has nothing"),
    (b"example,client\n0,a\n2,b\n", "line 3: example is '2', must be a number from 0 to 1"),
    (b"example,client\n-1,a\n", "line 2: example is '-1', must be a number"),
    (b"example,client\n0,a\n0,b\n", "line 3: example 0 is given to b and before to a"),
    (b"example,client\n1,a\n", r"example 0 is missing \(1 of 2 are\)"),
    (b"example,client\n0\n", "line 2: client is empty"),
    (b'example,client\n0,"a\n', "line [12]: is not CSV"),
    (b"example,client\n0,\xff\n", "is not UTF-8 at byte"),
  ],
)
def test_one_line_for_a_bad_table(tmp_path, content, message):
  path = tmp_path / "clients.csv"
  path.write_bytes(content)
  with pytest.raises(DataError, match=f"{path}: {message}") as caught:
    assignment.read(str(path), 2)
  assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
  with pytest.raises(DataError, match="no.csv: cannot be opened: No such file .*, must be"):
    assignment.read(str(tmp_path / "no.csv"), 2)
