"""Flax modules, and models of any library as methods train them."""

from sparsyfed_jax.models.cnn import CNN
from sparsyfed_jax.models.form import Form, form_of
from sparsyfed_jax.models.libraries import Functions, functions_of
from sparsyfed_jax.models.lstm import LSTM
from sparsyfed_jax.models.mlp import MLP
from sparsyfed_jax.models.network import Network, network_of
from sparsyfed_jax.models.norm import BatchNorm
from sparsyfed_jax.models.resnet import ResNet18, SpeechResNet18
from sparsyfed_jax.models.transformer import Transformer
from sparsyfed_jax.models.vit import ViT

__all__ = [
  "CNN",
  "LSTM",
  "MLP",
  "BatchNorm",
  "Form",
  "Functions",
  "Network",
  "ResNet18",
  "SpeechResNet18",
  "Transformer",
  "ViT",
  "form_of",
  "functions_of",
  "network_of",
]
