"""The model of a run, and how many clients train it side by side."""

import functools
import inspect
import math
from typing import Any, NoReturn

import jax

from experiments.run.config import AUTO, Config, ConfigError
from experiments.run.learning import task_of
from sparsyfed_jax import strangers
from sparsyfed_jax.fed import memory
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.models import CNN, LSTM, MLP, ResNet18, SpeechResNet18, Transformer, ViT

_TEXT_MODELS = {"transformer": Transformer, "lstm": LSTM}


def is_strange(config: Config) -> bool:
  """Tells whether the model is somebody else's, package.module:factory or ./file.py:factory."""
  return ":" in config.model


def check_model(config: Config) -> None:
  """Imports somebody else's factory, which runs its code; raises ConfigError."""
  if is_strange(config):
    _factory(config.model)


def model_digest(config: Config) -> str | None:
  """Makes a SHA-256 of the code of a model that is not in `MODELS`, as it was when loaded."""
  return _factory(config.model)[1] if is_strange(config) else None


@functools.cache
def _factory(name: str) -> tuple[Any, str]:
  module, _, attribute = name.rpartition(":")
  try:
    factory = strangers.load(module, attribute)
  except ValueError as error:
    raise ConfigError(
      f"--model={name}: must be a factory that can be imported ({error})"
    ) from error
  if not callable(factory):
    kind = type(factory).__name__
    raise ConfigError(f"--model={name}: must be a function of the number of outputs, is a {kind}")
  return factory, strangers.digest(module, factory)


@functools.cache
def make_strange(name: str, input_shape: tuple[int, ...], num_outputs: int) -> Any:
  factory, _ = _factory(name)
  is_class = inspect.isclass(factory)  # whose own signature flax.nnx hides
  told = inspect.signature(factory.__init__ if is_class else factory).parameters
  names = dict(list(told.items())[is_class:])
  for own in list(names.values())[1:]:
    is_free = own.kind in (own.VAR_POSITIONAL, own.VAR_KEYWORD) or own.default is not own.empty
    if not is_free and own.name not in ("input_shape", "key"):
      hint = ", which nnx.Rngs(key) makes" if own.name == "rngs" else ""
      raise ConfigError(
        f"--model={name}: must need only the number of outputs, input_shape and key, but needs"
        f" {own.name}{hint}"
      )
  asked = {"input_shape": input_shape} if "input_shape" in names else {}
  try:
    if "key" in names:  # the seed of the run decides where the model starts
      make = functools.partial(factory, num_outputs, **asked)
      make(key=jax.random.key(0))
      return lambda key: make(key=key)
    return factory(num_outputs, **asked)
  except Exception as error:  # of code that is not ours
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ConfigError(
      f"--model={name}: must make a model of {num_outputs} outputs for examples of shape"
      f" {input_shape} ({reason})"
    ) from error


def make_model(config: Config, input_shape: tuple[int, ...], num_classes: int) -> Any:
  """Makes the model of --model; raises ConfigError where it cannot take the examples."""
  if is_strange(config):
    return make_strange(config.model, input_shape, num_classes)

  def refuse(needs: str) -> NoReturn:
    raise ConfigError(
      f"--model={config.model}: needs {needs}, but an example of --dataset={config.dataset} has"
      f" shape {input_shape}; --model=mlp takes any"
    )

  is_of_tokens = task_of(config) == "next_token"
  if is_of_tokens != (config.model in _TEXT_MODELS):
    right = "transformer or lstm" if is_of_tokens else "a model of numbers, as mlp and cnn are,"
    raise ConfigError(f"--model={config.model}: must be {right} with --task={task_of(config)}")
  if is_of_tokens:
    return _TEXT_MODELS[config.model](num_classes)
  is_image = len(input_shape) == 3
  if config.model == "mlp":
    return MLP(num_classes)
  if config.model == "speech_resnet18":
    if math.prod(input_shape) != max(input_shape):
      refuse("a waveform of one channel")
    return SpeechResNet18(num_classes, norm=config.norm)
  if config.model == "resnet18":
    return ResNet18(num_classes, norm=config.norm) if is_image else refuse("images")
  if config.model == "vit":
    vit = ViT(num_classes)
    if not is_image or any(side % vit.patch for side in input_shape[:2]):
      refuse(f"images whose sides are multiples of {vit.patch} pixels")
    return vit
  cnn = CNN(num_classes)
  least = 2 * len(cnn.channels) + 2
  if not is_image or min(input_shape[:2]) < least:
    refuse(f"images of at least {least}x{least} pixels")
  return cnn


def choose_chunk(
  clients_per_chunk: str,
  setup: Setup,
  example: jax.ShapeDtypeStruct,
  clients_per_device: int,
  target: memory.Target,
  label: jax.ShapeDtypeStruct = memory.CLASS,
) -> int:
  """Reads the flag --clients_per_chunk; where it says auto, `fed.memory.choose_chunk` decides."""
  if clients_per_chunk != AUTO:
    return min(int(clients_per_chunk), clients_per_device)
  return memory.choose_chunk(setup, example, clients_per_device, target, label)
