"""`experiments.bench.interleave`: programs of other frameworks, each in its turn."""

import pathlib
import subprocess
import sys

import pytest

from experiments.bench.interleave import PeerError, interleave, open_peer

PEERS = pathlib.Path(__file__).parents[2] / "experiments" / "peers"
# Prints a number for each round, and what else a framework may have to say.
PROGRAM = """
import sys
print('first steps', file=sys.stderr)
print('hello')
print('first=2.5s', flush=True)
for i, line in enumerate(sys.stdin):
  print('another round', flush=True)
  print(f'round={i}.25s', flush=True)
open(sys.argv[1], 'w').write('end')
"""


def python(program, *arguments):
  return [sys.executable, "-c", program, *map(str, arguments)]


def test_a_peer_runs_a_round_when_it_is_its_turn_and_then_ends(tmp_path):
  ended = tmp_path / "ended"
  with open_peer(python(PROGRAM, ended)) as peer:
    assert peer.first_seconds == 2.5
    ours = iter([10.0, 11.0, 12.0])
    times = interleave([lambda: next(ours), peer.run_round], repeats=3)
    assert not ended.exists()
  assert times == [[10.0, 11.0, 12.0], [0.25, 1.25, 2.25]]
  assert ended.read_text() == "end"


def test_turns_go_round():
  calls = []
  interleave([lambda: calls.append("a"), lambda: calls.append("b")], repeats=2)
  assert calls == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
  ("command", "message"),
  [
    (["/nowhere/python"], "peer /nowhere/python: .*No such file"),
    (python("import sys; sys.exit('out of luck')"), "out of luck"),
    (python("print('median=1.5s')"), "exit code 0 and without 'first=<seconds>s'; .* --turns"),
    (python("print('first=s'); print('first=1.2.3s')"), "without 'first=<seconds>s'"),
    (python("print('first=0.000000s')"), "printed first=0.000000s: must be more than 0"),
    (python("raise SystemExit(3)"), "exit code 3 and without 'first=<seconds>s'"),
  ],
)
def test_a_peer_that_does_not_start_says_why(command, message):
  with pytest.raises(PeerError, match=message), open_peer(command):
    pass


@pytest.mark.parametrize(
  ("end", "message"), [("", "without 'round=<seconds>s'"), ("; sys.exit('worn out')", "worn out")]
)
def test_a_peer_that_ends_early_says_why(end, message):
  command = python(f"import sys; print('first=1.0s', flush=True); sys.stdin.readline(){end}")
  with open_peer(command) as peer:
    with pytest.raises(PeerError, match=message):
      peer.run_round()
    with pytest.raises(PeerError, match=message):  # a closed pipe says nothing
      peer.run_round()


def test_a_peer_that_does_not_end_is_ended(monkeypatch):
  monkeypatch.setattr("experiments.bench.interleave.PATIENCE_SECONDS", 0.1)
  command = python("import time; print('first=1.0s', flush=True); time.sleep(600)")
  with open_peer(command):
    pass


CLOCKED = f"""
import argparse, sys
sys.path.insert(0, {str(PEERS)!r})
import clock
parser = argparse.ArgumentParser()
clock.add_arguments(parser)
options = parser.parse_args()
timer = clock.Clock(options.rounds, options.turns, scale=1e6)
rounds = 0
while True:
  timer.start()
  rounds += 1
  if timer.stop():
    break
print(rounds, 'rounds', timer.summary())
"""


def test_the_clock_of_the_peers_waits_for_its_turn():
  with open_peer(python(CLOCKED, "--turns")) as peer:
    assert peer.first_seconds > 0
    assert all(peer.run_round() > 0 for _ in range(3))


def test_the_clock_of_the_peers_counts_rounds():
  done = subprocess.run(python(CLOCKED, "--rounds=4"), capture_output=True, text=True, check=True)
  assert done.stdout.startswith("6 rounds first=") and "median=" in done.stdout
