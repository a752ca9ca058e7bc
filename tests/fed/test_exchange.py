"""What is sampled to be encoded is what a client sends, to the byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.encoding import measure
from sparsyfed_jax.fed.exchange import sample_exchange
from sparsyfed_jax.fed.measures import measures
from sparsyfed_jax.fed.simulation import keys_of_round
from sparsyfed_jax.types import total
from tests import cases

pytest.importorskip("zstandard")
KEY = jax.random.key(7)


@pytest.mark.parametrize(
  ("method", "dtype"),
  cases.over_methods(["scaffold"], "float32")
  + cases.over_methods(["topk"], "int8", quick=["topk"])
  + cases.over_methods(["sparsyfed"], "float32", quick=())
  + cases.over_methods(["feddst"], "bfloat16", quick=()),
)
def test_bytes_of_a_sampled_client(method, dtype):
  wire_dtype = {"int8": jnp.bfloat16}.get(dtype, jnp.dtype(dtype))
  setup = {"wire_dtype": wire_dtype, "measures": measures(dtype)}
  federation = cases.problem("batchnorm").federation
  simulation = cases.simulation(method, "batchnorm")
  state = cases.whole(method, "batchnorm", cases.trained(method, "batchnorm"))

  def make(measures):
    return cases.algorithm(method, "batchnorm", **(setup | {"measures": measures}))

  exchange = jax.jit(lambda: sample_exchange(make, simulation, dtype, state, federation, KEY))()
  measured = measure(jax.device_get(exchange), dtype)

  cohort = jax.tree.map(
    lambda leaf: leaf[0], simulation.draw(state, federation.sizes, KEY, federation.fleet)
  )
  number = next(int(n) for n in cohort.numbers if federation.sizes[n] > 0)
  own_key = jax.random.fold_in(keys_of_round(KEY, state.server.round + 1).training, number)
  download = make(setup["measures"]).broadcast(state.server)
  memory = jax.tree.map(lambda leaf: leaf[number], state.memories)
  *_, metrics = cases.client(method, "batchnorm", **setup)(
    download, memory, cases.client_data(federation, number), own_key
  )
  assert measured.plain_uplink_bytes == total(metrics["round_uplink_bytes"].value)
  if method != "scaffold":  # which counts its control variates
    row = setup["measures"].step(exchange.download, exchange.download)
    assert measured.plain_downlink_bytes == row["downlink_bytes"]
  # Streams of so few values cost more than they gain, but are there.
  assert measured.measured_uplink_bytes != measured.plain_uplink_bytes
  if dtype == "int8":
    for leaf in jax.tree.leaves(exchange.upload):
      assert leaf.ndim < 2 or np.unique(np.abs(leaf)).size <= 128
