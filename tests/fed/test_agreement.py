"""Agreement of masks against loops over pairs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsyfed_jax.fed.agreement import mask_agreement, mean_pairwise_iou, pack_masks
from tests import cases

KEY = jax.random.key(2)  # of the clients' training, as in `cases.run_client`


def iou(a, b):
  either = np.sum(a | b)
  return np.sum(a & b) / either if either else 1.0


def mean_of_pairs(masks):
  return np.mean([iou(a, b) for a, b in itertools.combinations(masks, 2)])


@pytest.mark.parametrize("num_entries", [1, 8, 77])
def test_mean_of_pairs(num_entries):
  rng = np.random.default_rng(num_entries)
  masks = rng.random((6, num_entries)) < 0.4
  masks[2] = masks[4] = False  # two empty masks are the same
  counted = np.array([True, True, True, False, True, True])
  actual = jax.jit(mean_pairwise_iou)(jnp.packbits(masks, axis=1), jnp.asarray(counted))
  assert actual == pytest.approx(mean_of_pairs(masks[counted]), rel=1e-6)


def test_fewer_than_two_have_no_agreement():
  masks = jnp.ones((3, 4), jnp.uint8)
  assert np.isnan(mean_pairwise_iou(masks, jnp.array([False, True, False])))
  assert mean_pairwise_iou(masks, jnp.array([True, True, False])) == 1


def mask_of(upload):
  if hasattr(upload, "kept"):
    return np.concatenate([np.asarray(kept).ravel() > 0 for kept in upload.kept])
  return cases.flat_kernels(upload.variables["params"]) != 0


@pytest.mark.parametrize("method", cases.over_methods(["sparsyfed", "topk", "feddst"]))
def test_clients_train_as_in_the_round(method):
  state, federation = cases.trained(method, "batchnorm"), cases.problem("batchnorm").federation
  memories = cases.memories(method, "batchnorm", seed=1)
  numbers = [3, 0, cases.EMPTY, 5]
  agree = jax.jit(
    lambda state, cohort: mask_agreement(
      cases.algorithm(method, "batchnorm"), 10, state, memories, federation, cohort, KEY
    )
  )
  uploads = [
    cases.run_client(method, "batchnorm", state, i)[0] for i in numbers if i != cases.EMPTY
  ]
  masks = [mask_of(upload) for upload in uploads]
  assert agree(state, cases.members(numbers)) == pytest.approx(mean_of_pairs(masks), rel=1e-6)
  if method == "topk":  # the masks of the others agree
    assert mean_of_pairs(masks) < 1
  found = cases.algorithm(method, "batchnorm").masks(uploads[0])
  unpacked = np.unpackbits(np.asarray(pack_masks(found)))
  np.testing.assert_array_equal(unpacked[: masks[0].size], masks[0])


def test_at_most_so_many_are_compared():
  state, federation = cases.trained("topk", "batchnorm"), cases.problem("batchnorm").federation
  method, cohort = cases.algorithm("topk", "batchnorm"), cases.members([4, 5, 6, 0, 3])
  uploads = [cases.run_client("topk", "batchnorm", state, i)[0] for i in (4, 6, 3)]
  masks = [mask_of(upload) for upload in uploads]
  agreement = mask_agreement(method, 3, state, (), federation, cohort, KEY)
  assert agreement == pytest.approx(mean_of_pairs(masks), rel=1e-6)


def test_the_mask_of_a_download_is_its_own():
  method = cases.algorithm("feddst", "batchnorm")
  download = method.broadcast(cases.trained("feddst", "batchnorm"))
  expected = np.concatenate([np.asarray(mask).ravel() for mask in download.masks])
  unpacked = np.unpackbits(np.asarray(pack_masks(method.masks(download))))
  np.testing.assert_array_equal(unpacked[: expected.size], expected)
