"""The sum over a cohort, with a client made up by the tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed.cohort import federation_of, sum_over_clients
from sparsyfed_jax.types import tally, total, weighted
from tests import cases

SIZES = np.array([3, 0, 1, 2])
# Client i has the first SIZES[i] of the rows 3 i, 3 i + 1, 3 i + 2.
FEDERATION = federation_of(
  np.zeros((12, 1), np.float32),
  np.arange(12, dtype=np.int32),
  [3 * i + np.arange(size) for i, size in enumerate(SIZES)],
  np.array([1, 0.5, 0.25, 0.125], np.float32),
)


def client(download, memory, data, key):
  """Uploads a count of its own rows, and a random number for each client; counts its rounds."""
  is_own = jnp.arange(3) < data.size
  rows = jnp.zeros(12, jnp.int32).at[data.indices].add(is_own.astype(jnp.int32))
  noise = jnp.where(data.size > 0, jax.random.randint(key, (), 0, 2**20), 0)
  metrics = {"size": weighted(data.size.astype(jnp.float32), data.size > 0)}
  return {"rows": download * rows, "noise": noise}, {"rounds": memory["rounds"] + 1}, metrics


MEMORIES = {"rounds": jnp.zeros(4, jnp.int32)}


def run(cohort, clients_per_chunk=2, seed=0, download=1):
  upload, _, metrics = sum_over_clients(
    client,
    jnp.int32(download),
    MEMORIES,
    jax.tree.map(jnp.asarray, FEDERATION),
    cases.members(cohort),
    jax.random.key(seed),
    clients_per_chunk,
  )
  return upload["rows"].tolist(), int(upload["noise"]), metrics["size"]


@pytest.mark.parametrize("clients_per_chunk", [1, 2, 3, 4, 9])
def test_every_client_of_the_cohort_counts_once(clients_per_chunk):
  # Rows of client 0, none of client 1, of client 3. Absent clients of a chunk are nobody.
  rows, noise, size = run([3, 1, 0], clients_per_chunk, download=5)
  assert rows == [5, 5, 5, 0, 0, 0, 0, 0, 0, 5, 5, 0]
  assert (float(size.total), float(size.weight)) == (5, 2)
  assert noise == run([3, 0])[1]


def test_randomness_belongs_to_the_client_and_the_key():
  alone = [run([number])[1] for number in range(4)]
  assert len(set(alone)) == 4 and alone[1] == 0
  assert run([3, 2, 0])[1] == run([0, 2, 3])[1] == sum(alone)
  assert run([0], seed=1)[1] != alone[0]


def test_a_client_may_be_asked_twice():
  assert run([2, 2])[0] == [0] * 6 + [2] + [0] * 5


@pytest.mark.parametrize("clients_per_chunk", [1, 2, 4])
def test_who_vanished_is_nobody(clients_per_chunk):
  # Client 1 has no examples. The third chunk of two is filled up.
  cohort = cases.members([3, 1, 2, 0])
  cohort = cohort._replace(is_present=jnp.array([True, True, True, False]))
  federation, before = jax.tree.map(jnp.asarray, FEDERATION), {"rounds": jnp.arange(4)}
  upload, after, _ = sum_over_clients(
    client, jnp.int32(1), before, federation, cohort, jax.random.key(0), clients_per_chunk
  )
  assert after["rounds"].tolist() == [0, 1, 3, 4]
  assert upload["rows"].tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("clients_per_chunk", [1, 2, 9])
@pytest.mark.parametrize("number", [25_010_027, 2**32 - 1])
def test_whole_numbers_are_added_up_exactly(number, clients_per_chunk):
  def counting(download, memory, data, key):
    return {"a": jnp.float32(1)}, (), {"bytes": tally(jnp.uint32(number), data.size > 0)}

  cohort = cases.members([0, 1, 2, 3] * 5)
  federation = jax.tree.map(jnp.asarray, FEDERATION)
  *_, metrics = sum_over_clients(
    counting, None, (), federation, cohort, jax.random.key(0), clients_per_chunk
  )
  assert total(metrics["bytes"].value) == 15 * number


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clients_per_chunk", [1, 2, 3])
@pytest.mark.parametrize("part", ["upload", "memory"])
def test_who_sends_what_is_not_finite_is_left_out_and_counted(broken, clients_per_chunk, part):
  def diverging(download, memory, data, key):
    upload = jnp.where(data.density_scale == 0.25, broken, data.density_scale)
    # Client 2, of scale 1/4, breaks in one entry of two; its metrics are of no use either.
    sent = jnp.where(data.size > 0, jnp.stack([jnp.float32(1), upload]), 0)
    metrics = {"m": weighted(upload, data.size > 0)}
    if part == "memory":  # fine to send, but not to keep
      return {"a": jnp.nan_to_num(sent, posinf=0, neginf=0)}, memory + upload, metrics
    return {"a": sent}, memory + 1, metrics

  upload, memories, metrics = sum_over_clients(
    diverging,
    None,
    jnp.arange(4.0),
    jax.tree.map(jnp.asarray, FEDERATION),
    cases.members([0, 2, 3]),
    jax.random.key(0),
    clients_per_chunk,
  )
  assert upload["a"].tolist() == [2, 1.125]
  assert (float(metrics["m"].total), float(metrics["m"].weight)) == (1.125, 2)
  assert memories.tolist() == ([1, 1, 2, 3.125] if part == "memory" else [1, 1, 2, 4])
  assert float(metrics["excluded_clients"].total) == 1
  assert float(metrics["clients"].total) == 2
