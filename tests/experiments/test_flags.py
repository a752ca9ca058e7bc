import pytest

from experiments import flags
from experiments.build import build

ACCEPTED = flags.DEFAULTS


@pytest.mark.parametrize(
  ("change", "right"),
  [
    (dict(sparsity=1.2), "at least 0 and below 1"),
    (dict(sparsity=1.0), "at least 0 and below 1"),
    (dict(sparsity=float("nan")), "at least 0 and below 1"),
    (dict(beta=0.9), "at least 1"),
    (dict(activation_floor=-0.1), "between 0 and 1"),
    (dict(model="resnet1"), "one of mlp, cnn"),
    (dict(algorithm="nosuch"), "one of fedavg, sparsyfed, topk"),
    (dict(sparsity_schedule="step"), "one of constant, cubic, linear"),
    (dict(server_optimizer="lion"), "one of sgd"),
    (dict(partition="label"), "one of dirichlet"),
    (dict(rounds=0), "at least 1"),
    (dict(batch_size=0), "at least 1"),
    (dict(eval_every=0), "at least 1"),
    (dict(client_lr=0.0), "positive"),
    (dict(client_lr=float("inf")), "finite"),
    (dict(client_lr_final=-1.0), "positive"),
    (dict(weight_decay=-1e-3), "at least 0"),
    (dict(dirichlet_alpha=0.0), "positive"),
    (dict(seed=-1), "between 0 and"),
    (dict(clients_per_chunk="many"), "auto or a whole number"),
    (dict(clients_per_chunk="0"), "auto or a whole number"),
    (dict(clients_per_round=200, num_clients=100), "at most --num_clients=100"),
    (dict(num_clients=0), "at least 1"),
    (dict(sparsity_ramp_rounds=101), "between 0 and --rounds=100"),
    (dict(sparsity_ramp_rounds=5, sparsity_schedule="constant"), "no ramp"),
  ],
)
def test_a_bad_flag_is_named_with_its_value_and_what_is_right(change, right):
  with pytest.raises(flags.ConfigError, match=right) as caught:
    flags.check(ACCEPTED._replace(**change))
  message = str(caught.value)
  (name,) = [name for name in change if message.startswith(f"--{name}={change[name]}:")]
  assert name in change
  assert "\n" not in message


def test_the_defaults_and_their_edges_are_accepted():
  flags.check(ACCEPTED)
  flags.check(ACCEPTED._replace(sparsity=0.0, beta=1.0, activation_floor=1.0))
  flags.check(ACCEPTED._replace(clients_per_round=100, num_clients=100, clients_per_chunk="7"))
  flags.check(ACCEPTED._replace(sparsity_schedule="constant", sparsity_ramp_rounds=0))
  flags.check(ACCEPTED._replace(sparsity_ramp_rounds=ACCEPTED.rounds))


def test_defaults_follow_from_other_flags():
  resolved = flags.resolve(ACCEPTED._replace(rounds=41, client_lr=0.2))
  assert resolved.sparsity_ramp_rounds == 20
  assert resolved.client_lr_final == pytest.approx(0.02)
  assert flags.resolve(ACCEPTED._replace(sparsity_schedule="constant")).sparsity_ramp_rounds == 0
  given = ACCEPTED._replace(sparsity_ramp_rounds=3, client_lr_final=0.3)
  assert flags.resolve(given) == given


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (dict(partition="natural"), "--partition=natural"),
    (dict(clients_per_round=101), "--clients_per_round=101"),
    (dict(partition="shards", shards_per_client=1000), "--partition=shards"),
    (dict(num_clients=5000), "--partition=dirichlet"),
  ],
)
def test_flags_that_do_not_fit_the_data_are_refused(change, named):
  with pytest.raises(flags.ConfigError, match=named):
    build(flags.resolve(ACCEPTED._replace(**change)))


@pytest.mark.parametrize("partition", flags.PARTITIONS[:-1])
def test_every_partition_deals_all_examples(partition):
  experiment = build(flags.resolve(ACCEPTED._replace(partition=partition, num_clients=20)))
  assert experiment.federation.sizes.sum() == experiment.facts["train_examples"]
