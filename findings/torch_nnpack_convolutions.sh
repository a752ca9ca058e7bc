#!/usr/bin/env bash
# PyTorch 2.14.1 on CPUs: without oneDNN, convolutions go to NNPACK, which errs by 1e-5 of the largest
# value, thirty times what float32 rounding makes.
#
# Expected: a float32 convolution is as exact with `torch.backends.mkldnn` disabled (or in a build that
# has none) as with it, since `torch.get_float32_matmul_precision()` is "highest".
# Seen: 3 x 3 convolutions differ from those in float64 by some 1e-5 of the largest value; with
# `torch.backends.nnpack` disabled too, by some 1e-7, as with oneDNN. So a comparison with another
# library has to disable it. Nothing of this differs in 2.13.0.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf -- "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$place/venv/bin/python" -W ignore - <<'PYTHON_END'
import torch

torch.manual_seed(0)
x, w = torch.randn(16, 64, 16, 16), torch.randn(64, 64, 3, 3)
exact = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)


def error():
  found = torch.nn.functional.conv2d(x, w, padding=1)
  return float((found - exact).abs().max() / exact.abs().max())


with_onednn = error()
with torch.backends.mkldnn.flags(enabled=False):
  with_nnpack = error()
  with torch.backends.nnpack.flags(enabled=False):
    with_neither = error()
print(f"precision {torch.get_float32_matmul_precision()}, NNPACK {torch.backends.nnpack.is_available()}")
print(f"relative errors: oneDNN {with_onednn:.1e}, NNPACK {with_nnpack:.1e}, neither {with_neither:.1e}")
assert torch.get_float32_matmul_precision() == "highest"
assert max(with_onednn, with_neither) < 1e-6, "the others err too"
assert with_nnpack > 3e-6, "NNPACK is exact now, or gone"
PYTHON_END
