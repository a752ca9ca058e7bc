"""Plain flax modules that take their layers' operations as an attribute, `ops`."""

from sparsyfed_jax.models.cnn import CNN
from sparsyfed_jax.models.lstm import LSTM
from sparsyfed_jax.models.mlp import MLP
from sparsyfed_jax.models.norm import BatchNorm
from sparsyfed_jax.models.resnet import ResNet18, SpeechResNet18
from sparsyfed_jax.models.transformer import Transformer
from sparsyfed_jax.models.vit import ViT

__all__ = [
  "CNN",
  "LSTM",
  "MLP",
  "BatchNorm",
  "ResNet18",
  "SpeechResNet18",
  "Transformer",
  "ViT",
]
