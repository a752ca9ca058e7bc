"""FLASH, FedDST and fixed masks, slow and plain, as in `reference`.

Random masks cannot be predicted, only their sizes can: `Masks` says where only the size is known.
"""

from math import ceil, floor
from typing import NamedTuple

import jax
import numpy as np

from sparsyfed_jax.fed.pruning import positive_noise
from tests.algorithms.reference import (
  Report,
  budget,
  cut,
  double,
  exact,
  largest,
  largest_of_all,
  largest_of_each,
  masked,
  server_step,
  shares,
  train,
)
from tests.algorithms.reference_net import NAMES, Rule, each, loss_gradient, replace_kernels

# Whose masks have Erdős–Rényi–kernel densities and are readjusted, by clients or by the server.
ADJUSTED = ("feddst", "fedmef", "fedrts", "fedtiny", "prunefl")
_AFTER_EPOCH = 2**31 - 1  # the library's key of what happens between two epochs


class Masks(NamedTuple):
  """{layer: array} each: a mask, where it is open which entries belong to it, and its size."""

  certain: dict[str, np.ndarray]
  is_open: dict[str, np.ndarray]
  sizes: dict[str, int]


class Round(NamedTuple):
  """The result."""

  params: dict | None  # None where they are drawn anew
  masks: Masks
  warm_up: tuple  # sums of the layer densities that warm-up clients found, and of their weights
  report: Report


def start(method, params):
  """Makes the server's first parameters, where they are not random, and masks."""
  theta = double(params)
  sizes = {name: theta[name]["kernel"].size for name in NAMES}
  density = method.values["density"]
  if method.name in ADJUSTED:
    masks = exactly(largest_of_each(theta, layer_densities(method, theta)))
    return masked(theta, masks.certain), masks
  if _is_by_saliency(method) or method.has("form", "magnitude"):
    return theta, exactly(_everything(theta))
  densities = dict.fromkeys(NAMES, density)
  if method.has("mask", "erk"):
    densities = erk(theta, density)
  densities |= dict.fromkeys(_dense(method), 1.0)
  return None, _random(theta, {name: budget(densities[name], sizes[name]) for name in NAMES})


def layer_densities(method, theta):
  """Computes the densities of the layers of a method that readjusts its masks."""
  density = method.values["density"]
  if not method.has("densities", "release"):
    return erk(theta, density)
  shapes = {name: theta[name]["kernel"].shape for name in NAMES}
  raw = {name: 1 - sum(shape) / np.prod(shape) for name, shape in shapes.items()}
  sizes = {name: np.prod(shape) for name, shape in shapes.items()}
  whole = sum(sizes.values())
  scale = (1 - density) * whole / sum(raw[name] * sizes[name] for name in NAMES)
  assert all(0 <= scale * share <= 1 for share in raw.values())
  return {name: 1 - scale * raw[name] for name in NAMES}


def erk(theta, density):
  """Computes FedDST's layer densities, in proportion to (sum of sides) / (product of sides)."""
  shapes = {name: theta[name]["kernel"].shape for name in NAMES}
  raw = {name: sum(shape) / np.prod(shape) for name, shape in shapes.items()}
  sizes = {name: np.prod(shape) for name, shape in shapes.items()}
  dense = set()
  while True:
    left = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
    scale = left / sum(raw[name] * sizes[name] for name in NAMES if name not in dense)
    found = {name for name in NAMES if name not in dense and scale * raw[name] > 1}
    if not found:
      return {name: 1.0 if name in dense else scale * raw[name] for name in NAMES}
    dense |= found


def kind(method, number):
  """Says what happens in a round besides training inside the masks."""
  values = method.values
  if method.name in ADJUSTED:
    every, until = (values[f"{method.name}_update_{one}"] for one in ("every", "until"))
    due = number % every == 0 and number < until
    return "readjust" if due else "train"
  if method.name in ("ssfl", "static"):
    return "saliency" if _is_by_saliency(method) and number == 1 else "train"
  form = method.options.get("form", "spdst")
  if form == "pdst":
    return "train"
  if form == "nst":
    return "independent"
  if form == "magnitude":
    return "magnitude" if number == 1 else "train"
  after = number - values["flash_warmup_rounds"] - 1  # rounds since the first one after warm-up
  if after < 0:
    return "warm-up"
  return "update" if form == "jmwst" and after % values["flash_update_every"] == 0 else "train"


def _dense(method):
  """Lists the layers that stay dense."""
  convolutions = ("Conv_0", "Conv_1", "Conv_2")
  return [n for n in NAMES if method.has("prunes", "convolutions") and n not in convolutions]


def _is_by_saliency(method):
  return method.name == "ssfl" or method.has("mask", "saliency")


def run_round(method, number, params, masks, warm_up, clients, epochs):
  """Runs a round, as `reference.run_round` does.

  Args:
    method, number, params, clients, epochs: as there.
    masks: {layer: array}, the server's.
    warm_up: the sums that `Round` has, of the rounds before.

  Returns:
    A Round.
  """
  theta = double(params)
  what = kind(method, number)
  if what == "saliency":
    return _saliency_round(method, theta, warm_up, clients)
  if what == "warm-up":
    epochs = int(method.values["flash_warmup_epochs"])

  results, losses, regrown = [], [], 0.0
  for client, share in shares(clients):
    end, kept, seen = _train_client(method, number, client, theta, masks, epochs, what)
    results.append((share, end, kept))
    losses.extend(seen)
    # A weight that has just grown is 0, so growth is counted by masks.
    grown = [(kept[name] & ~masks[name]).reshape(-1) for name in NAMES]
    regrown += share * np.concatenate(grown).mean()
  report = Report(np.mean(losses), regrown)

  found = sum(share * np.array([kept[name].mean() for name in NAMES]) for share, _, kept in results)
  if what == "warm-up":
    weight = sum(client.size for client in clients)
    total, weights = np.asarray(warm_up[0]) + weight * found, float(warm_up[1]) + weight
    warm_up = total, weights
    if number < method.values["flash_warmup_rounds"]:
      return Round(theta, exactly(masks), warm_up, report)
    drawn = _fair(method, theta, total / weights, 1)
    counts = {name: budget(drawn[name], masks[name].size) for name in NAMES}
    return Round(None, _random(theta, counts), warm_up, report)

  by_coordinate = method.name == "feddst" or method.has("aggregation", "masked_mean")
  new = server_step(method, theta, _mean(results, by_coordinate))
  if method.name == "feddst":
    chosen = _prune_kept(new, layer_densities(method, theta), results)
  elif what == "update":
    chosen = _prune_kept(new, _fair(method, theta, found, found), results)
  elif what == "magnitude":
    kernels = {name: np.abs(new[name]["kernel"]) for name in NAMES}
    counts = {
      # The clients' mean is whole where it is within rounding of it.
      name: floor(share * kernels[name].size + 1e-6)
      for name, share in zip(NAMES, found, strict=True)
    }
    chosen = {name: largest(w, counts[name]) for name, w in kernels.items()}
    chosen = exactly(chosen | {name: masks[name] for name in _dense(method)})
  elif what == "independent":
    chosen = exactly({name: votes > 0 for name, votes in _votes(results).items()})
  else:
    chosen = exactly(masks)
  return Round(masked(new, chosen.certain), chosen, warm_up, report)


def _fair(method, theta, densities, most):
  """Multiplies the densities of pruned layers so that together they have the method's."""
  sizes = np.array([0 if n in _dense(method) else theta[n]["kernel"].size for n in NAMES])
  scaled = densities * method.values["density"] / (densities @ sizes / sizes.sum())
  found = dict(zip(NAMES, np.minimum(scaled, most), strict=True))
  return found | dict.fromkeys(_dense(method), 1.0)


def _train_client(method, number, client, theta, masks, epochs, what):
  """Trains a client as the kind of round wants it; returns parameters, masks and losses."""
  density = method.values["density"]
  if what == "independent":
    densities = dict.fromkeys(NAMES, density) | dict.fromkeys(_dense(method), 1.0)
    masks = largest_of_each(theta, densities)
  moves = what in ("warm-up", "update", "independent")
  end, kept, losses = _train_masked(method, number, client, theta, masks, epochs, moves)
  if what == "magnitude":
    kept = kept | largest_of_all(end, density, without=_dense(method))
  elif what == "readjust":
    gradient, _ = loss_gradient(Rule(), end, *client.epochs[epochs - 1][-1])
    end, kept = _readjust(method, number, end, kept, gradient)
  return masked(end, kept), kept, losses


def _train_masked(method, number, client, theta, masks, epochs, moves):
  """Trains inside masks, which move between epochs; returns parameters, masks and losses."""

  def change(theta, epoch):
    nonlocal masks
    if epoch is not None and moves:
      rate = method.values["flash_drop_rate"] * (1 - (epoch + 1) / epochs)
      if epochs == 1:
        rate = method.values["flash_drop_rate"] / 2
      if rate > 0:
        key = jax.random.fold_in(client.keys[epoch], _AFTER_EPOCH)
        theta, masks = _exchange(theta, masks, rate, key, _dense(method))
    return masked(theta, masks)

  start = masked(theta, masks)
  end, losses = train(method, number, client, start, Rule(), epochs, change)
  return end, masks, losses


def _exchange(theta, masks, rate, key, dense):
  """FLASH: drops the smallest of each layer, regrows as many anywhere at random, from 0."""
  kept, means, dropped = dict(masks), [], 0
  pruned = [name for name in NAMES if name not in dense]
  for name in pruned:
    magnitudes, active = np.abs(theta[name]["kernel"]), masks[name].sum()
    means.append(magnitudes[masks[name]].mean() if active else 0.0)
    out = ceil(exact(rate) * int(active))
    kept[name] = largest(np.where(masks[name], magnitudes, 0), active - out)
    dropped += active - kept[name].sum()
  room = np.array([(~kept[name]).sum() for name in pruned])
  ends = np.round(np.cumsum(_pour(dropped, np.array(means), room))).astype(int)
  counts = np.diff(ends, prepend=0)
  grown, keys = dict.fromkeys(dense, False), jax.random.split(key, len(NAMES))
  for name, count in zip(pruned, counts, strict=True):
    one_key = keys[NAMES.index(name)]
    noise = np.asarray(positive_noise(one_key, kept[name].shape))
    grown[name] = largest(np.where(kept[name], 0, noise), count)
  return masked(theta, kept), {name: kept[name] | grown[name] for name in NAMES}


def _pour(amount, weights, room):
  """Shares an amount in proportion to weights; what does not fit in one goes to the others."""
  filled = np.zeros(len(weights))
  is_full = np.zeros(len(weights), bool)
  while True:
    open_weights = np.where(is_full, 0, weights)
    filled = np.where(is_full, room, 0) + (
      (amount - room[is_full].sum()) * open_weights / open_weights.sum()
    )
    if not np.any(filled > room):
      return filled
    is_full |= filled > room


def _readjust(method, number, theta, masks, gradient):
  """FedDST: drops the smallest of each layer and grows where the gradient is large."""
  progress = number / method.values["feddst_update_until"]
  rate = method.values["feddst_drop_rate"] / 2 * (1 + np.cos(np.pi * progress))
  densities = layer_densities(method, theta)
  kept, grown = {}, {}
  for name in NAMES:
    w, g = np.abs(theta[name]["kernel"]), np.abs(gradient[name]["kernel"])
    counts = (budget(densities[name] * share, w.size) for share in (1, 1 - rate))
    kept[name], grown[name] = exchange(np.where(masks[name], w, 0), g, *counts)
  return masked(theta, kept), {name: kept[name] | grown[name] for name in NAMES}


def exchange(w, score, whole, stay):
  """What stays of a layer's magnitudes, more where less can grow, and what grows."""
  kept = largest(w, stay)
  grown = largest(np.where(kept, 0, score), whole - kept.sum())
  return kept | largest(np.where(grown, 0, w), whole - grown.sum()), grown


def _mean(results, by_coordinate):
  """The clients' mean; by coordinate, of those whose mask has the weight."""
  goal = each(np.zeros_like, results[0][1])
  for share, end, _ in results:
    goal = each(lambda total, leaf, p=share: total + p * leaf, goal, end)
  if not by_coordinate:
    return goal
  votes = _votes(results)
  return replace_kernels(
    goal,
    {
      name: np.divide(
        goal[name]["kernel"], votes[name], where=votes[name] > 0, out=np.zeros(votes[name].shape)
      )
      for name in NAMES
    },
  )


def _votes(results):
  return {name: sum(share * kept[name] for share, _, kept in results) for name in NAMES}


def _prune_kept(theta, densities, results):
  """Keeps each layer's largest; zeros that a client kept fill what is left, by votes."""
  votes = _votes(results)
  chosen, is_open, sizes = {}, {}, {}
  for name in NAMES:
    w = np.abs(theta[name]["kernel"])
    # Votes are shares, at most 1.
    rank = np.where(w > 0, 1 + w, np.round(votes[name], 9))
    wanted = budget(densities[name], w.size)
    chosen[name] = largest(rank, wanted)
    is_tied = chosen[name].sum() > wanted
    is_open[name] = (rank == cut(rank, wanted)) & is_tied
    sizes[name] = min(wanted, chosen[name].sum())
  return Masks(chosen, is_open, sizes)


def _saliency_round(method, theta, warm_up, clients):
  """SNIP over a federation: where |dL/dw w| is largest, as a mean over the clients."""
  total, losses = each(np.zeros_like, theta), []
  for client, share in shares(clients):
    gradient, seen = loss_gradient(Rule(), theta, *client.single[0])
    salience = each(lambda g, w: np.abs(g * w), gradient, theta)
    total = each(lambda a, b, p=share: a + p * b, total, salience)
    losses.extend(seen)
  chosen = largest_of_all(total, method.values["density"])
  return Round(masked(theta, chosen), exactly(chosen), warm_up, Report(np.mean(losses), 0.0))


def _everything(theta):
  return {name: np.ones(theta[name]["kernel"].shape, bool) for name in NAMES}


def exactly(masks):
  return Masks(
    masks,
    {name: np.zeros(masks[name].shape, bool) for name in NAMES},
    {name: int(masks[name].sum()) for name in NAMES},
  )


def _random(theta, sizes):
  anywhere = _everything(theta)
  return Masks({name: ~anywhere[name] for name in NAMES}, anywhere, sizes)
