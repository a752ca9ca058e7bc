import pytest
from absl import flags as absl_flags

from experiments import flags
from experiments.run.build import build
from experiments.run.choices import PARTITIONS
from experiments.run.settings import own_hyper, own_options
from sparsyfed_jax.algorithms import METHODS

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
    (
      dict(algorithm="nosuch"),
      "one of fedavg, feddst, flash, scaffold, sparsyfed, static, topk, zerofl, feddyn, fedmef,"
      " fedpm, fedrts, fedtiny, prunefl, spafl, ssfl, heterofl, fedfade",
    ),
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
    (dict(norm="layer"), "one of batch, group"),
    (dict(client_optimizer="adam"), "one of sgd, nesterov, adamw"),
    (dict(client_momentum=1.0), "below 1"),
    (dict(client_momentum=0.9, client_optimizer="adamw"), "left out"),
    (dict(client_momentum=0.0, client_optimizer="nesterov"), "above 0"),
    (dict(client_momentum=0.9, algorithm="scaffold"), "left out with --algorithm=scaffold"),
    (dict(client_optimizer="adamw", algorithm="scaffold"), "left out with --algorithm=scaffold"),
    (dict(client_clip_norm=-1.0), "at least 0"),
    (dict(proximal_mu=float("nan")), "at least 0"),
    (dict(client_lr_schedule="step"), "one of exponential"),
    (dict(client_weighting="loss"), "one of size, uniform"),
    (dict(activation_threshold="round"), "one of batch, first_batch"),
    (dict(reparam_exclude="("), "a regular expression"),
    (dict(reparameterisation="log"), "one of powerprop, spectral"),
    (dict(upload="gradients"), "one of weights, changes"),
    (dict(zerofl_uplink="all"), "one of weights, masked_changes, changes"),
    (dict(zerofl_mask_ratio=0.2, sparsity=0.1, algorithm="zerofl"), "between 0 and --sparsity=0.1"),
    (dict(flash_form="dst"), "one of spdst, jmwst"),
    (dict(flash_warmup_rounds=0), "at least 1"),
    (dict(flash_drop_rate=1.5), "between 0 and 1"),
    (dict(feddst_update_every=0), "at least 1"),
    (dict(data_placement="host"), "one of replicated, sharded, streamed"),
    (dict(compute_dtype="float16"), "one of float32, tf32, bfloat16"),
    (dict(num_processes=2), "given if and only if --coordinator=HOST:PORT is"),
    (dict(num_processes=None, coordinator="a:1"), "given if and only if"),
    (dict(coordinator="a", num_processes=2, process_id=0), "HOST:PORT or auto"),
    (dict(process_id=2, num_processes=2, coordinator="a:1"), "between 0 and 1"),
    (dict(num_devices=2, coordinator="auto"), "left out with --coordinator"),
    (dict(static_mask="lottery"), "one of random, erk, saliency"),
    (dict(client_sparsities=(0.5,)), "at least --sparsity=0.95"),
    (dict(client_sparsities=(0.99,), algorithm="feddst"), "left out with --algorithm=feddst"),
    (dict(client_sparsity_shares=(1.0,)), "as many as --client_sparsities"),
    (dict(client_sparsity_shares=(0.5, 0.4), client_sparsities=(0.95, 0.99)), "together 1"),
  ],
)
def test_a_bad_flag_is_named_with_its_value_and_what_is_right(change, right):
  with pytest.raises(flags.ConfigError, match=right) as caught:
    flags.check(ACCEPTED._replace(**change))
  message = str(caught.value)
  (name,) = [name for name in change if message.startswith(f"--{name}={change[name]}:")]
  assert name in change
  assert "\n" not in message


@pytest.mark.parametrize(
  "text", ["0", "255,0", "1,1", "0,inf", "nan,1", "auto,none", "a,0", "0,1,2"]
)
def test_a_bad_input_range_is_named_with_what_is_right(text):
  with pytest.raises(flags.ConfigError) as caught:
    flags.check(ACCEPTED._replace(input_range=tuple(text.split(","))))
  right = "must be LOW,HIGH with LOW < HIGH, auto or none"
  assert str(caught.value) == f"--input_range={text}: {right}"


@pytest.mark.parametrize(
  ("argument", "expected"),
  [((), "auto"), (("--input_range=none",), None), (("--input_range=-0.5,2",), (-0.5, 2))],
)
def test_an_input_range_is_read_from_the_command_line(argument, expected):
  values = absl_flags.FlagValues()
  flags.define(values)
  values(["train", *argument])
  assert flags.input_range(flags.read(values)) == expected


def test_an_input_range_reaches_the_model():
  config = ACCEPTED._replace(input_range=("0", "32"))
  assert flags.input_range(config) == (0, 32)
  facts = build(flags.resolve(config)).facts
  assert (facts["mean"], facts["std"], facts["input_range"]) == (16, 16, (0, 32))
  assert flags.input_range(ACCEPTED._replace(input_range=("none",))) is None


def test_the_defaults_and_their_edges_are_accepted():
  flags.check(ACCEPTED)
  flags.check(ACCEPTED._replace(sparsity=0.0, beta=1.0, activation_floor=1.0))
  flags.check(ACCEPTED._replace(clients_per_round=100, num_clients=100, clients_per_chunk="7"))
  flags.check(ACCEPTED._replace(sparsity_schedule="constant", sparsity_ramp_rounds=0))
  flags.check(ACCEPTED._replace(sparsity_ramp_rounds=ACCEPTED.rounds))


@pytest.mark.parametrize(
  ("changes", "client_lr", "server_lr"),
  [
    ({}, 0.5, 1.0),
    (dict(client_momentum=0.9), 0.05, 1.0),
    (dict(client_optimizer="nesterov", client_momentum=0.5), 0.25, 1.0),
    (dict(client_optimizer="adamw"), 0.01, 1.0),
    (dict(server_optimizer="momentum"), 0.5, 1.0),
    *(
      (dict(server_optimizer=name), 0.5, 0.01)
      for name in ("adagrad", "adam", "yogi", "fedadagrad", "fedadam", "fedyogi")
    ),
    (dict(server_optimizer="adam", server_lr=1.0, client_lr=2.0), 2.0, 1.0),
  ],
)
def test_rates_suit_the_optimizers_unless_they_are_given(changes, client_lr, server_lr):
  config = ACCEPTED._replace(**changes)
  flags.check(config)
  resolved = flags.resolve(config)
  assert (resolved.client_lr, resolved.server_lr) == (client_lr, server_lr)
  assert resolved.client_lr_final == client_lr / 10


def test_defaults_follow_from_other_flags():
  resolved = flags.resolve(ACCEPTED._replace(rounds=41, client_lr=0.2))
  assert resolved.sparsity_ramp_rounds == 20
  assert resolved.client_lr_final == pytest.approx(0.02)
  assert flags.resolve(ACCEPTED._replace(sparsity_schedule="constant")).sparsity_ramp_rounds == 0
  assert resolved.feddst_update_until == 20
  assert resolved.task == "classification"
  settings = [one for method in METHODS.values() for one in method.settings()]
  own = {setting.name: 7 for setting in settings if setting.default is None}
  assert "feddst_update_until" in own
  given = ACCEPTED._replace(
    sparsity_ramp_rounds=3,
    client_lr=0.4,
    client_lr_final=0.3,
    server_lr=0.7,
    task="regression",
    **own,
  )
  assert flags.resolve(given) == given


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (dict(partition="natural"), "--partition=natural"),
    (dict(clients_per_round=101), "--clients_per_round=101"),
    (dict(partition="shards", shards_per_client=1000), "--partition=shards"),
    (dict(num_clients=5000), "--partition=dirichlet"),
    (dict(model="vit", dataset="digits", reparam_exclude="shortcut"), "--reparam_exclude=shortcut"),
    (dict(algorithm="zerofl", zerofl_exclude="nosuch"), "--zerofl_exclude=nosuch.*Conv_0, Conv_1"),
    (dict(model="speech_resnet18"), "--model=speech_resnet18: needs a waveform"),
  ],
)
def test_flags_that_do_not_fit_the_data_are_refused(change, named):
  with pytest.raises(flags.ConfigError, match=named):
    build(flags.resolve(ACCEPTED._replace(**change)))


@pytest.mark.parametrize("partition", PARTITIONS[:-1])
def test_every_partition_deals_all_examples(partition):
  experiment = build(flags.resolve(ACCEPTED._replace(partition=partition, num_clients=20)))
  assert experiment.federation.sizes.sum() == experiment.facts["train_examples"]


def test_clients_get_their_sparsities_in_the_shares_asked_for():
  config = ACCEPTED._replace(
    num_clients=10,
    sparsity=0.9,
    client_sparsities=(0.9, 0.95, 0.975),
    client_sparsity_shares=(0.4, 0.3, 0.3),
  )
  scales = [
    build(flags.resolve(config._replace(seed=seed))).federation.density_scales.tolist()
    for seed in (0, 0, 1)
  ]
  assert sorted(scales[0]) == pytest.approx([0.25] * 3 + [0.5] * 3 + [1] * 4)
  assert scales[0] == scales[1] != scales[2]


def test_only_what_a_method_reads_is_an_option_of_it():
  assert own_options(ACCEPTED)._asdict() == {
    "activation_threshold": "batch",
    "reparam_exclude": "",
    "reparameterisation": "powerprop",
    "upload": "weights",
  }
  assert own_options(ACCEPTED._replace(algorithm="fedavg")) == ()
  ignored = flags.ignored(ACCEPTED._replace(algorithm="topk"))
  assert {"beta", "reparam_exclude", "zerofl_form"} <= set(ignored)
  assert not {"sparsity", "sparsity_schedule", "client_lr"} & set(ignored)


def test_forms_of_methods_have_defaults_of_their_own():
  for name, method in METHODS.items():
    config = ACCEPTED._replace(algorithm=name)
    assert own_options(config) == method.options()
    assert own_hyper(config) == method.hyper()
