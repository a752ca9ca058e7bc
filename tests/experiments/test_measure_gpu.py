"""The script for a GPU goes on with what is not done, and with nothing that was done otherwise."""

import os
import subprocess


def test_a_step_is_done_once_and_by_one_command(request, tmp_path):
  script = request.config.rootpath / "experiments" / "measure_gpu.sh"

  def run(**more):
    own = {"PYTHON": "echo", "TORCH_PYTHON": "false", "STEPS": "mlp64", "TINY": "1"} | more
    arguments = ["bash", str(script), str(tmp_path)]
    done = subprocess.run(arguments, env=os.environ | own, capture_output=True, text=True)
    return done.returncode, done.stderr

  code, told = run(PYTHON="false")
  assert code == 1 and "not measured: mlp64" in told
  code, told = run()
  assert code == 0 and "mlp64: exit code 0" in told
  assert "--compute_dtype=float32" in (tmp_path / "mlp64.out").read_text()
  code, told = run()
  assert code == 0 and "mlp64: done before\n" in told
  code, told = run(COMPUTE_DTYPE="bfloat16")
  assert code == 1 and "mlp64: done before by another command" in told
  assert "--compute_dtype=float32" in (tmp_path / "mlp64.out").read_text()
