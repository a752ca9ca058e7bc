"""Rows of pieces are what an array of them has, and each piece is asked for its own rows alone."""

import numpy as np
import pytest

from sparsyfed_jax.data import mapped, scaling
from sparsyfed_jax.data.rows import Rows, select

SIZES = [3, 0, 1, 5]
WHOLE = np.random.default_rng(0).integers(-99, 99, (9, 2, 4))


@pytest.fixture
def asked():
  return []


@pytest.fixture
def rows(asked):
  pieces = np.split(WHOLE, np.cumsum(SIZES)[:-1])

  def read(piece, rows):
    asked.append((piece, rows.tolist()))
    return pieces[piece][rows]

  return Rows(SIZES, (2, 4), np.int64, read, lambda: asked.append("released"))


@pytest.mark.parametrize("wanted", [[8, 0, 3, 3, 2, 7], [], range(9), [4], [-1, 2, -9]])
def test_any_rows_in_any_order(rows, wanted):
  wanted = np.array(wanted, int)
  np.testing.assert_array_equal(rows[wanted], WHOLE[wanted])
  np.testing.assert_array_equal(rows.select(wanted)[:], WHOLE[wanted])
  wanted = np.arange(9)[wanted]
  out = np.zeros((len(wanted), 2, 4), np.int64)
  mapped.take(rows, wanted, out)
  np.testing.assert_array_equal(out, WHOLE[wanted])


@pytest.mark.parametrize("wanted", [[9], [0, -10], [True, False] + 7 * [True], [0.0], [[0, 1]]])
def test_rows_that_are_not_there_are_refused(rows, asked, wanted):
  with pytest.raises(IndexError, match="must be"):
    rows[wanted]
  with pytest.raises(IndexError, match="must be"):
    rows.select(np.array(wanted))
  assert not asked


def test_a_piece_is_read_once_and_only_what_is_wanted_of_it(rows, asked):
  rows[np.array([8, 0, 3, 2, 8])]
  assert asked == [(0, [0, 2]), (2, [0]), (3, [4, 4])]


def test_of_a_large_piece_some_rows_are_read_at_a_time():
  asked = []

  def read(piece, rows):
    asked.append(len(rows))
    return rows[:, None]

  found = Rows([1000, 2500], (1,), np.int32, read)[:]
  assert found[:, 0].tolist() == [*range(1000), *range(2500)]
  assert sum(asked) == 3500 and max(asked) <= 1024


@pytest.mark.parametrize("part", [slice(None), slice(2, 7), slice(-3, None), slice(8, 1, -2)])
def test_slices(rows, part):
  np.testing.assert_array_equal(rows[part], WHOLE[part])


def test_what_it_has_of_an_array(rows):
  for name in ("shape", "dtype", "ndim", "size", "nbytes"):
    assert getattr(rows, name) == getattr(WHOLE, name)
  assert len(rows) == 9 and (np.asarray(rows, np.float32) == WHOLE).all()


def test_shapes_casts_and_selections_do_not_read(rows, asked):
  chosen = np.array([5, 1, 1, 8])
  made = rows.reshape(9, -1).astype(np.float32).select(chosen).select(np.array([3, 0]))
  assert rows.reshape(-1, 8).shape == (9, 8) and made.shape == (2, 8) and not asked
  found = made[:]
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, WHOLE.reshape(9, 8)[[8, 5]])
  np.testing.assert_array_equal(select(rows, chosen)[:], select(WHOLE, chosen))
  np.testing.assert_array_equal(rows[:], WHOLE)  # which is as it was
  with pytest.raises(ValueError, match="count=8: must be 9"):
    rows.reshape(8, 8)


def test_what_takes_all_of_them_is_found_out_once_and_lets_go(rows, asked, monkeypatch):
  monkeypatch.setattr(mapped, "_BLOCK_BYTES", 4 * 64)
  assert mapped.ends(rows) == mapped.ends(rows.reshape(9, 8)) == (WHOLE.min(), WHOLE.max())
  assert asked.count("released") == 3 and len(asked) < 10
  assert mapped.ends(rows.select(np.arange(2))) == (WHOLE[:2].min(), WHOLE[:2].max())
  assert scaling.find_range(rows) == scaling.find_range(WHOLE)
  np.testing.assert_array_equal(mapped.every(rows, 7), WHOLE.reshape(-1)[::7])
  narrow = scaling.narrow(rows)[0]
  assert narrow.dtype == np.int16 and (narrow[:] == WHOLE).all()
