"""Reads optimised programs as XLA writes them, and adds up what a round of one takes.

The text names computations, each a list of instructions; loops and branches call others. Of a TPU's
program many instructions tell the cycles that the compiler estimated; gathers, sorts, copies and
calls of libraries have none. Each instruction also tells the path of scopes it was traced in.
"""

import collections
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# The scopes of the core that are told apart, as they name their part of a round. Of scopes within
# each other the innermost counts.
PARTS = {
  "thresholds": "thresholds",
  "shuffling": "shuffling",
  "local_training": "local training",
  "aggregation": "aggregation",
  "clients": "other work of clients",
  "sampling": "sampling",
  "server": "server",
  "measures": "measures",
}
OTHER = "other"
LOCAL_STEPS = "local_steps"  # the scope of the loop over a client's batches
CLIENTS = "clients"  # of the loop over chunks

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# Of a counter, which is signed; unsigned limits are those of bit patterns.
_LIMIT = re.compile(r" s(?:32|64)\[\][^ ]* constant\((\d+)\)")
_LIBRARY = re.compile(r'custom_call_target="([^"]*)"')
_WORD = re.compile(r"\w+")
_ARRAY = re.compile(r"(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
# What takes no time of its own.
_FREE = frozenset(
  "get-tuple-element tuple parameter constant bitcast after-all partition-id replica-id"
  " opt-barrier domain".split()
)
_STRUCTURE = frozenset("while body cond closed_call shard_map checkpoint".split())  # of jax
_COLLECTIVES = (
  *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"),
  *("collective-broadcast", "ragged-all-to-all"),
)


class Instruction(NamedTuple):
  """One line of a program."""

  name: str
  result: str  # its type, such as f32[8,128]{1,0}
  opcode: str
  line: str


class Program(NamedTuple):
  """A program: lists of instructions by computation."""

  computations: Mapping[str, Sequence[Instruction]]
  entry: str


class Counted(NamedTuple):
  """An instruction that takes time, and how often it is run."""

  instruction: Instruction
  times: float
  cycles: int  # of one time; 0 where they are not estimated
  part: str  # one of the values of PARTS, or OTHER
  operation: str  # of jax, such as dot_general, or the opcode where it is unknown


class Walk(NamedTuple):
  """What a program does, loops counted through."""

  counted: list[Counted]
  collectives: dict[str, tuple[float, float]]  # by kind: how many, and bytes of their results
  assumed: list[str]  # paths of inner loops of unknown length, counted once


def parse(text: str) -> Program:
  """Reads a program as `compiled.as_text()` has it."""
  computations: dict[str, list[Instruction]] = {}
  current: list[Instruction] | None = None
  entry = ""
  for line in text.splitlines():
    header = _HEADER.match(line) if line.rstrip().endswith("{") and "->" in line else None
    if header:
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      result, rest = _split_type(found[2])
      current.append(Instruction(found[1], result, rest.split("(")[0].strip(), line))
  return Program(computations, entry)


def _split_type(text: str) -> tuple[str, str]:
  """Separates the type of a result, which may be a tuple of types, from what makes it."""
  if not text.startswith("("):
    result, _, rest = text.partition(" ")
    return result, rest
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return text[: i + 1], text[i + 1 :].strip()
  return text, ""


def walk(program: Program, trips: Mapping[str, float]) -> Walk:
  """Counts the instructions of a program that take time, as often as loops run them.

  Both branches of a condition are counted. A loop runs as often as the compiler knows, or else as
  `trips` says (loops of one scope side by side share its number), or as the only number that it is
  compared with; the outermost loop of unknown length is that over rounds, and counted once.

  Args:
    program: of a round.
    trips: by scope, how often the loop whose innermost scope it is runs.
  """
  found = Walk([], {}, [])

  def visit(name: str, times: float, depth: int, around: str) -> None:
    instructions = program.computations.get(name, ())
    scopes = collections.Counter(_told_by(each, trips) for each in instructions)
    for each in instructions:
      if each.opcode == "while":
        scope = _told_by(each, trips)
        count = _known_trips(program, each)
        if scope:
          count = trips[scope] / scopes[scope]  # stages of one loop
        if not count and depth:
          found.assumed.append(_path(each))
        visit(_called(each, "body"), times * (count or 1.0), depth + 1, _path(each) or around)
      elif each.opcode == "conditional":
        for branch in _branches(each):
          visit(branch, times, depth, _path(each) or around)
      elif each.opcode == "call":
        visit(_called(each, "to_apply"), times, depth, _path(each) or around)
      elif each.opcode.endswith(("-start", "-done")) and "calls=" in each.line:
        if each.opcode.endswith("-start"):
          visit(_called(each, "calls"), times, depth, _path(each) or around)
      elif each.opcode not in _FREE and not each.opcode.endswith("-done"):
        found.counted.append(_count(program, each, times, around))
        _add_collectives(program, each, times, found.collectives)

  visit(program.entry, 1.0, 0, "")
  return found


def _known_trips(program: Program, loop: Instruction) -> float:
  """Finds how often a loop runs; 0 where that is not known."""
  if known := _TRIPS.search(loop.line):
    return float(known[1])
  limits = {
    int(limit[1])
    for each in program.computations.get(_called(loop, "condition"), ())
    if (limit := _LIMIT.search(each.line))
  }
  return float(limits.pop()) if len(limits) == 1 else 0.0


def _told_by(loop: Instruction, trips: Mapping[str, float]) -> str:
  """Names the scope that says how often a loop runs of which the compiler does not know it."""
  if loop.opcode != "while" or _TRIPS.search(loop.line):
    return ""
  scope, inside = "", ""
  path = _path(loop)
  for word in _WORD.finditer(path):
    if word[0] in trips or word[0] in PARTS:
      scope, inside = word[0], path[word.end() :]
  return scope if scope in trips and len(re.findall(r"\bwhile\b", inside)) == 1 else ""


def _count(program: Program, each: Instruction, times: float, around: str) -> Counted:
  cycles = _CYCLES.search(each.line)
  path = _path(each) or _path_within(program, each)
  part = OTHER
  for word in _WORD.findall(path if "/" in path else around):  # the compiler's own have no path
    part = PARTS.get(word, part)
  operation = path.rpartition("/")[2]
  if not operation.isidentifier() or operation in _STRUCTURE or "/" not in path:
    library = _LIBRARY.search(each.line)
    operation = library[1] if library else each.opcode
  return Counted(each, times, int(cycles[1]) if cycles else 0, part, operation)


def _path_within(program: Program, each: Instruction) -> str:
  """Finds the path of a fusion that has none by that of the last instruction in it that has one."""
  inside = program.computations.get(_called(each, "calls"), ())
  return next((path for one in reversed(inside) if (path := _path(one))), "")


def _add_collectives(
  program: Program, each: Instruction, times: float, sums: dict[str, tuple[float, float]]
) -> None:
  inside = program.computations.get(_called(each, "calls"), ()) if "calls=" in each.line else ()
  for one in (each, *inside):
    kind = one.opcode.removesuffix("-start")
    if kind in _COLLECTIVES:
      count, size = sums.get(kind, (0.0, 0.0))
      sums[kind] = count + times, size + times * num_bytes(one.result)


def num_bytes(result: str) -> int:
  """Adds up the bytes of the arrays in a type, without padding."""
  total = 0
  for kind, dimensions in _ARRAY.findall(result):
    width = _BITS.search(kind)
    size = 1
    for length in filter(None, dimensions.split(",")):
      size *= int(length)
    total += size * (max(8, int(width[0])) // 8 if width else 1)
  return total


def _called(each: Instruction, key: str) -> str:
  found = re.search(rf"\b{key}=%?([\w.\-]+)", each.line)
  return found[1] if found else ""


def _branches(each: Instruction) -> list[str]:
  listed = re.search(r"branch_computations=\{([^}]*)\}", each.line)
  if listed:
    return [name.strip().lstrip("%") for name in listed[1].split(",")]
  return [_called(each, "true_computation"), _called(each, "false_computation")]


def _path(each: Instruction) -> str:
  found = _OP_NAME.search(each.line)
  return found[1] if found else ""


def by_part(counted: Sequence[Counted]) -> dict[str, tuple[float, float]]:
  """Adds up instructions and their cycles by part of a round, the most first."""
  return _sums((one.part, one) for one in counted)


def by_operation(counted: Sequence[Counted]) -> dict[str, tuple[float, float]]:
  """Adds up instructions and their cycles by operation of jax, the most first."""
  return _sums((one.operation, one) for one in counted)


def _sums(pairs: Iterable[tuple[str, Counted]]) -> dict[str, tuple[float, float]]:
  times: dict[str, float] = collections.defaultdict(float)
  cycles: dict[str, float] = collections.defaultdict(float)
  for key, one in pairs:
    times[key] += one.times
    cycles[key] += one.times * one.cycles
  order = sorted(times, key=lambda key: (-cycles[key], -times[key]))
  return {key: (times[key], cycles[key]) for key in order}
