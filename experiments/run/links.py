"""Connections of the first of several processes with each other one, for words beside training.

A process that was killed closes its connection, so the others know of it at once. The runtime of
jax takes a minute to notice and then aborts.
"""

import json
import os
import queue
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

CONNECT_SECONDS = 60.0
# A host that is cut off closes nothing: it is asked after so many seconds of silence, so often.
_SILENCE, _INTERVAL, _TRIES = 15, 5, 3


class LinkError(RuntimeError):
  """The processes cannot reach each other; the one-line message names the address."""


class Link:
  """What a process has of the connections; `connect` makes it."""

  def __init__(self, rank: int, sockets: dict[int, socket.socket]) -> None:
    """Starts to watch.

    Args:
      rank: of this process.
      sockets: by the process at the other end: of the first process to each other one, of another
        process to the first one.
    """
    self._rank = rank
    self._sockets = sockets
    self._inboxes: dict[int, queue.Queue[Any]] = {other: queue.Queue() for other in sockets}
    self._farewells = dict.fromkeys(sockets, 0)
    self._lock = threading.Lock()
    for other in sockets:
      threading.Thread(target=self._read, args=(other,), daemon=True).start()

  def exchange(self, word: Any) -> list[Any]:
    """Tells all processes a word and returns those of all, by rank; all of them have to ask.

    Args:
      word: what JSON can hold.
    """
    word = json.loads(json.dumps(word))  # as the others see it
    if self._rank:
      self._send(0, {"word": word})
      return self._inboxes[0].get()
    words = [word, *(self._inboxes[other].get() for other in sorted(self._sockets))]
    for other in self._sockets:
      self._send(other, {"word": words})
    return words

  def leave(self) -> None:
    """Lets this process end without the others missing it."""
    for other in self._sockets:
      self._send(other, {"bye": True})
      self._part(other)

  def _part(self, other: int) -> None:
    """Closes a connection at the second of both farewells."""
    with self._lock:
      self._farewells[other] += 1
      if self._farewells[other] == 2:
        self._sockets[other].close()

  def _send(self, other: int, message: Any) -> None:
    try:
      self._sockets[other].sendall(json.dumps(message).encode() + b"\n")
    except OSError:
      pass  # gone, which `_read` finds out

  def _read(self, other: int) -> None:
    try:
      with self._sockets[other].makefile("r", encoding="utf-8") as lines:
        for line in lines:
          message = json.loads(line)
          if "bye" in message:
            return self._part(other)
          if "gone" in message:
            self._end(message["gone"])
          self._inboxes[other].put(message["word"])
    except (OSError, ValueError):
      pass
    self._end(other)

  def _end(self, gone: int) -> NoReturn:
    for other in self._sockets:
      if self._rank == 0 and other != gone:
        self._send(other, {"gone": gone})
    print(
      f"\nerror: process {gone} is gone, and process {self._rank} cannot go on without it;"
      " --resume goes on from the last checkpoint",
      file=sys.stderr,
      flush=True,
    )
    os._exit(1)  # the main thread waits for the other process inside the runtime


def own_hosts() -> list[str]:
  """Names this machine as others may reach it: by its name, and by its address."""
  hosts = [socket.gethostname()]
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    try:
      probe.connect(("192.0.2.1", 9))  # chooses the way out, and sends nothing
      hosts.append(probe.getsockname()[0])
    except OSError:
      pass  # a machine without a network
  return hosts


def connect(rank: int, count: int, hosts: Sequence[str], announce: Callable[[str], str]) -> Link:
  """Connects the processes.

  Args:
    rank: of this process.
    count: of all processes.
    hosts: under one of which the others reach the first one; its own count.
    announce: gives all processes the text, of ASCII, that the first one calls it with.

  Raises:
    LinkError: a process was not reached.
  """
  if rank == 0:
    is_dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=is_dual) as listener:
      listener.settimeout(CONNECT_SECONDS)
      token = secrets.token_hex(8)
      announce(" ".join([token, str(listener.getsockname()[1]), *hosts]))
      return Link(0, _accept(listener, count, token))
  token, port, *known = announce("").split()
  connection = _reach(rank, known, int(port))
  connection.sendall(f"{token} {rank}\n".encode())
  return Link(rank, {0: _kept_alive(connection)})


def _reach(rank: int, hosts: Sequence[str], port: int) -> socket.socket:
  problems = []
  for host in hosts:
    try:
      return socket.create_connection((host, port), CONNECT_SECONDS / (len(hosts) + 1))
    except OSError as error:
      problems.append(f"{host}:{port} ({error})")
  raise LinkError(f"process {rank} cannot reach the first one at {' or '.join(problems)}")


def _accept(listener: socket.socket, count: int, token: str) -> dict[int, socket.socket]:
  sockets: dict[int, socket.socket] = {}
  while len(sockets) < count - 1:
    try:
      connection, _ = listener.accept()
      connection.settimeout(CONNECT_SECONDS)
      greeting = _read_line(connection).split()
    except OSError as error:
      missing = sorted(set(range(1, count)) - set(sockets))
      raise LinkError(f"process {missing[0]} did not connect to the first one: {error}") from error
    if len(greeting) == 2 and greeting[0] == token:
      sockets[int(greeting[1])] = _kept_alive(connection)
    else:  # a stranger
      connection.close()
  return sockets


def _read_line(connection: socket.socket) -> str:
  """Reads up to the end of a line, and nothing after it."""
  line = b""
  while not line.endswith(b"\n") and len(line) < 64:
    byte = connection.recv(1)
    if not byte:
      break
    line += byte
  return line.decode("ascii", "replace")


def _kept_alive(connection: socket.socket) -> socket.socket:
  connection.settimeout(None)
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (
    ("TCP_KEEPIDLE", _SILENCE),
    ("TCP_KEEPINTVL", _INTERVAL),
    ("TCP_KEEPCNT", _TRIES),
  ):
    if hasattr(socket, name):  # not everywhere
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return connection
