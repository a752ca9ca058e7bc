"""The model of a run, and how many clients train it side by side."""

import math
from typing import NoReturn

import jax
from flax import linen as nn

from experiments.run.config import AUTO, Config, ConfigError
from experiments.run.learning import task_of
from sparsyfed_jax.fed import memory
from sparsyfed_jax.fed.algorithm import Setup
from sparsyfed_jax.models import CNN, LSTM, MLP, ResNet18, SpeechResNet18, Transformer, ViT

_TEXT_MODELS = {"transformer": Transformer, "lstm": LSTM}


def make_model(config: Config, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
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
  model: nn.Module,
  setup: Setup,
  example: jax.ShapeDtypeStruct,
  clients_per_device: int,
  target: jax.ShapeDtypeStruct = memory.CLASS,
) -> int:
  """Reads the flag --clients_per_chunk, and decides where it says auto.

  Args:
    clients_per_chunk: the flag.
    model: that is trained.
    setup: of the method.
    example: shape and dtype of one example, as stored.
    clients_per_device: of a round.
    target: shape and dtype of what is predicted of an example.
  """
  if clients_per_chunk != AUTO:
    return min(int(clients_per_chunk), clients_per_device)
  # On CPU convolutions fill the cores one client at a time, and batching them only costs cache;
  # small dense layers need many clients side by side.
  if jax.default_backend() == "cpu" and not isinstance(model, MLP):
    return 1
  return memory.choose_chunk(setup, example, clients_per_device, target)
