"""Packages of the extra `export`, imported where they are needed."""

import importlib
from typing import Any

from experiments.exports.network import ExportError


def need(package: str, format_name: str) -> Any:
  """Imports a package; raises ExportError where it is not installed."""
  try:
    return importlib.import_module(package)
  except ImportError as error:
    extra = "onnx" if format_name == "onnx" else "export"
    raise ExportError(
      f"--format={format_name}: needs the package {package.partition('.')[0]}, which the extra"
      f" `{extra}` brings ({error})"
    ) from error
