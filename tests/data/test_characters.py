"""Texts: clients, sequences, the held-out part, and bad files."""

import os

import jax
import numpy as np
import pytest

from sparsyfed_jax.data import characters, remarks, sources
from sparsyfed_jax.data.characters import cut, from_pieces
from sparsyfed_jax.data.reading import READING

BOOK = "Dear reader,\nhello.\n\nChapter I\nIt was dark.\n\nCHAPTER 2. A night\nIt rained.\n"
TABLE = 'client,line,text\nann,1,"To be, or ""not"""\nbob,2,Words\nann,3,to be.\n'


def decoded(dataset, x):
  return "".join(dataset.classes[i] for i in np.ravel(x))


class TestCut:
  def test_blocks_are_whole_lines_and_all_of_them(self):
    content = "".join(f"line {i}\n" for i in range(11))
    pieces = cut(content, READING._replace(num_clients=4), "here")
    assert "".join(pieces.values()) == content
    assert [piece.count("\n") for piece in pieces.values()] == [3, 3, 2, 3]
    assert list(pieces)[0] == "lines 1 to 3"

  def test_chapters_begin_with_their_headings(self):
    pieces = cut(BOOK, READING._replace(clients="chapters"), "here")
    assert list(pieces) == ["before the first heading", "Chapter I", "CHAPTER 2. A night"]
    assert "".join(pieces.values()) == BOOK
    assert pieces["Chapter I"] == "Chapter I\nIt was dark.\n\n"

  def test_chapters_of_one_name_are_two_clients(self):
    pieces = cut("Act I\nx\nAct I\ny\n", READING._replace(clients="chapters"), "here")
    assert pieces == {"Act I": "Act I\nx\n", "Act I'": "Act I\ny\n"}

  def test_rows_of_a_column_are_joined(self):
    reading = READING._replace(clients="column")
    assert cut(TABLE, reading, "here") == {"ann": 'To be, or "not"\nto be.\n', "bob": "Words\n"}


PIECES = {"a": "abcdefghij" * 2, "b": "aab", "c": "xyzzy" * 3}
DATA = from_pieces(PIECES, 5, "toy")


class TestSequences:
  def test_each_character_but_the_first_is_predicted_once(self):
    for number, piece in enumerate(PIECES.values()):
      train, test = piece[: -(len(piece) // 5) or None], piece[len(piece) - len(piece) // 5 :]
      for own, x, y, clients in (
        (train, DATA.x_train, DATA.y_train, DATA.client_train),
        (test, DATA.x_test, DATA.y_test, DATA.client_test),
      ):
        x, y = x[clients == number], y[clients == number]
        assert decoded(DATA, x[y >= 0]) == own[:-1]
        assert decoded(DATA, y[y >= 0]) == own[1:]
        assert np.all(x[y < 0] == 0) and np.all(y[y < 0] == -1)

  def test_padding_is_at_the_end(self):
    is_padded = DATA.y_train < 0
    assert np.all(np.diff(is_padded.astype(int), axis=1) >= 0)
    assert not is_padded[:, 0].any()

  def test_the_vocabulary_is_that_of_the_training_part(self):
    data = from_pieces({"a": "abababab?!"}, 4, "toy")
    assert data.classes == (characters.UNKNOWN, "a", "b") and data.num_classes == 3
    assert data.y_test.tolist() == [[0, -1, -1, -1]] and data.x_test[0, 0] == 0
    assert remarks.remarks(data) == [
      "1 of the 1 characters of the test part are of kinds that the training part does not have,"
      " and count as mistakes"
    ]

  def test_what_it_is(self):
    assert DATA.kind == "next_token" and DATA.num_clients == 3
    assert DATA.x_train.dtype == DATA.y_train.dtype == np.int32
    assert DATA.x_train.shape == DATA.y_train.shape == (7, 5)
    assert DATA.client_train.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert remarks.remarks(DATA) == []

  def test_a_client_may_be_too_short(self):
    data = from_pieces({"a": "abcde" * 4, "b": "", "c": "x"}, 4, "toy")
    assert set(data.client_train) == {0} and data.num_clients == 3


class TestFiles:
  @pytest.fixture
  def save(self, tmp_path):
    def write(content, name="book.txt"):
      path = tmp_path / name
      path.write_bytes(content if isinstance(content, bytes) else content.encode())
      return str(path)

    return write

  def load(self, path, **reading):
    key = jax.random.key(0)
    return sources.load(f"text:{path}", key, reading=READING._replace(**reading))

  def test_a_file(self, save):
    path = save(b"\xef\xbb\xbf" + BOOK.replace("\n", "\r\n").encode())
    data = self.load(path, clients="chapters", sequence_length=7)
    assert data.name == "book" and data.num_clients == 3
    assert "\r" not in data.classes and "\ufeff" not in data.classes and "\n" in data.classes

  def test_a_csv_file(self, save):
    data = self.load(save(TABLE), clients="column", sequence_length=7)
    assert data.num_clients == 2

  @pytest.mark.parametrize(
    ("content", "reading", "message"),
    [
      ("", {}, "is empty, must hold a text"),
      (BOOK, {"clients": "verses"}, "clients=verses: must be one of blocks, chapters, column"),
      (" \n\n", {}, "is empty"),
      (b"abc\xff", {}, "is not UTF-8 at byte 3"),
      ("a\nb\n", {}, "num_clients=100: must be between 1 and 2, the number of lines"),
      ("abc\n", {"num_clients": 1}, "leaves no test example, as its 1 clients have 4 characters"),
      ("a\n", {"num_clients": 1}, "leaves no test example"),
      (BOOK, {"clients": "chapters", "pattern": "Scene"}, "pattern='Scene': .* finds 0"),
      (BOOK, {"clients": "chapters", "pattern": "Dear"}, "pattern='Dear': .* finds 1"),
      (BOOK, {"clients": "chapters", "pattern": "x*"}, r"pattern='x\*': .* finds 0"),
      (BOOK, {"clients": "chapters", "pattern": "("}, "must be a regular expression"),
      (BOOK, {"sequence_length": 0, "num_clients": 2}, "sequence_length=0: must be at least 1"),
      (BOOK, {"clients": "column"}, "columns: text is not in its header, which has Dear reader"),
      (TABLE, {"clients": "column", "columns": ("text", "who")}, "columns: who is not in its head"),
      (TABLE, {"clients": "column", "columns": ("text", "text")}, "must be two names"),
      ("text,client\n", {"clients": "column"}, "has no row below its header"),
      ("text,client\nabc\n", {"clients": "column"}, "row 1: has fewer entries than the header"),
      ('text,client\n"abc,ann\n', {"clients": "column"}, "is not CSV"),
    ],
  )
  def test_bad_content_is_one_line(self, save, content, reading, message):
    self.check(save(content), message, **reading)

  def test_what_is_no_file(self, tmp_path):
    self.check(str(tmp_path / "none.txt"), "no such file, must be a text file")
    self.check(str(tmp_path), "is no regular file")
    os.mkfifo(tmp_path / "pipe")
    self.check(str(tmp_path / "pipe"), "is no regular file")
    self.check("a\0b", "cannot be opened")

  def check(self, path, message, **reading):
    with pytest.raises(sources.DataError, match=message) as caught:
      self.load(path, **reading)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")

  def test_another_task_is_refused(self, save):
    path = save(BOOK)
    reading = READING._replace(num_clients=2)
    with pytest.raises(sources.DataError, match="--task=regression: must be next_token"):
      sources.load(f"text:{path}", jax.random.key(0), task="regression", reading=reading)
