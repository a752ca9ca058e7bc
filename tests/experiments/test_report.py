"""The page that is made of a folder of runs: its numbers, its pictures, and what it refuses."""

import base64
import html.parser
import json
import re
import shutil
import statistics
import subprocess
import sys

import numpy as np
import pytest
from absl.flags import FlagValues
from matplotlib.image import imsave

from experiments import flags
from experiments.report import __main__ as command
from experiments.report import page, pictures, runs
from sparsyfed_jax.algorithms import METHODS

ROUNDS = 6
LAYERS = ["Conv_0", "Dense_0"]
CURVES = {
  "test_accuracy": "Test accuracy",
  "cumulative_bytes": "Accuracy for its traffic",
  "client_accuracy_p10": "Accuracy of the weakest clients",
  "prunable_sparsity": "Sparsity of the global model",
  "client_regrowth": "Client regrowth",
  "server_regrowth": "Server regrowth",
  "mask_iou": "Global mask, round to round",
  "client_mask_iou": "Clients’ masks among each other",
  "layer_density": "Density by layer",
}
OF_SUMMARY = {
  "shift_round": "Recovery from the shift",
  "client_accuracies": "Spread over the clients",
  "flops_by_layer": "FLOPs by layer",
}
MATRIX = "Masks of different rounds"


def make_config(**given):
  config = flags.resolve(flags.DEFAULTS._replace(rounds=ROUNDS, **given))
  ignored = dict.fromkeys(flags.ignored(config))
  facts = {"data": {"num_clients": 100}, "device": "1 x cpu", "versions": {"jax": "0.10.2"}}
  return config._asdict() | ignored | facts


def make_rows(rng):
  rows = []
  for number in range(1, ROUNDS + 1):
    row = {
      "round": number,
      "train_loss": 1 / number,
      "train_accuracy": rng.uniform(),
      "test_loss": None,
      "global_sparsity": 0.9,
      "prunable_sparsity": rng.uniform(0.9, 0.95),
      "client_regrowth": rng.uniform(0, 0.1),
      "server_regrowth": rng.uniform(0, 0.1),
      "cumulative_bytes": 10_000 * number,
      "mask_iou": rng.uniform(0.5, 1),
      "layer_density": rng.uniform(0.01, 0.5, len(LAYERS)).tolist(),
    }
    is_measured = number % 2 == 0
    for name in ("test_accuracy", "client_accuracy_p10", "client_mask_iou"):
      row[name] = rng.uniform(0.2, 0.8) if is_measured else None
    rows.append(row)
  return rows


def make_summary(rng, rows, **given):
  parts = {"forward": 3e6, "input_gradient": 2e6, "weight_gradient": 1e6}
  return {
    "algorithm": "unread",
    "test_accuracy": rows[-1]["test_accuracy"],
    "prunable_sparsity": rows[-1]["prunable_sparsity"],
    "uplink_bytes_per_client_round": rng.uniform(10_000, 20_000),
    "downlink_bytes_per_client_round": rng.uniform(10_000, 20_000),
    "layers": LAYERS,
    "client_flops_per_round": rng.uniform(1e6, 2e6),
    "dense_client_flops_per_round": 4e6,
    "flops_by_layer": [{"layer": name, **parts, "dense_total": 9e6} for name in LAYERS],
    "target_accuracy": 0.5,
    "bytes_to_target": rng.uniform(1e6, 2e6),
    "rounds_to_target": 4,
    "shift_round": 3,
    "accuracy_before_shift": rng.uniform(),
    "lowest_accuracy_after_shift": rng.uniform(),
    "rounds_to_regain": None,
    "client_accuracies": rng.uniform(size=20).tolist(),
    "seconds_per_round": 0.25,
    **given,
  }


def write(directory, config, rows, summary=None, similarity=None):
  directory.mkdir(parents=True)
  (directory / "config.json").write_text(json.dumps(config))
  (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for name, content in (("summary.json", summary), ("mask_similarity.json", similarity)):
    if content is not None:
      (directory / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two settings by two seeds that ended, a run that diverged, and one that is under way."""
  root = tmp_path_factory.mktemp("runs") / "a<b> & co"
  rng = np.random.default_rng(0)
  for algorithm in ("topk", "sparsyfed"):
    for seed in (0, 1):
      rows = make_rows(rng)
      summary = make_summary(rng, rows)
      if (algorithm, seed) == ("topk", 1):
        summary["bytes_to_target"] = summary["rounds_to_target"] = None
      similarity = {"rounds": [2, 4], "iou": [[1, 0.7], [0.7, 1]]}
      place = root / "sweep" / f"{algorithm},{seed}"
      write(place, make_config(algorithm=algorithm, seed=seed), rows, summary, similarity)
  config = make_config(algorithm="topk", seed=2)
  write(root / "sweep" / "topk,2", config, make_rows(rng)[:2], {"diverged": "round 3: <nan>"})
  config = make_config(algorithm="sparsyfed", seed=2, compilation_cache_dir="<img src=x>")
  write(root / "<script>alert(1)<script>", config, make_rows(rng)[:4])
  return root


@pytest.fixture(scope="module")
def text(folder):
  return page.make(runs.read(folder), "python -m experiments.report 'a<b> & co'")


class Reader(html.parser.HTMLParser):
  """Collects what a browser would: tags with their attributes, headings, tables, and all text."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.tables, self.words, self.titles, self._open = [], [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in ("meta", "img", "path", "use", "rect", "image", "br"):
      self._open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")
    elif tag in ("h2", "h3"):
      self.titles.append("")

  def handle_endtag(self, tag):
    if tag in self._open:
      while self._open.pop() != tag:
        pass

  def handle_data(self, data):
    if "style" in self._open:
      return
    self.words.append(data)
    if {"td", "th"} & set(self._open):
      self.tables[-1][-1][-1] += data
    elif {"h2", "h3"} & set(self._open):
      self.titles[-1] += data


def svgs_of(text):
  """Decodes the pictures that were drawn, with their words for who does not see them."""
  kind = "data:image/svg+xml;base64,"
  images = [attributes for tag, attributes in Reader(text).tags if tag == "img"]
  return [
    (base64.b64decode(image["src"].removeprefix(kind)).decode(), image["alt"])
    for image in images
    if image["src"].startswith(kind)
  ]


def run_command(*arguments):
  table = FlagValues()
  command.define(table)
  command.main(flags.parse_with_names(["report", *map(str, arguments)], table), table)


def expect(values, factor, decimals):
  values = [factor * value for value in values]
  return f"{np.mean(values):.{decimals}f} ± {statistics.stdev(values):.{decimals}f}"


def load(folder, algorithm):
  places = [folder / "sweep" / f"{algorithm},{seed}" for seed in (0, 1)]
  rows = [
    [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    for place in places
  ]
  return [json.loads((place / "summary.json").read_text()) for place in places], rows


@pytest.mark.parametrize("algorithm", ["topk", "sparsyfed"])
def test_the_table_has_means_and_deviations_of_the_runs_that_ended(folder, text, algorithm):
  heads, *lines = Reader(text).tables[0]
  name = {"topk": "Top-K", "sparsyfed": "SparsyFed"}[algorithm]
  (line,) = (line for line in lines if line[0] == name)
  found = dict(zip(heads, line, strict=True))
  summaries, rows = load(folder, algorithm)

  def of_rows(name, first=1):
    columns = [[row[name] for row in run if row["round"] >= first] for run in rows]
    return [np.mean([value for value in column if value is not None]) for column in columns]

  def of_summary(name):
    return [summary[name] for summary in summaries]

  flops = np.divide(of_summary("client_flops_per_round"), 4e6)
  expected = {
    "Test accuracy%": expect(of_summary("test_accuracy"), 100, 2),
    "Zeros among prunable weights%": expect(of_summary("prunable_sparsity"), 100, 2),
    "Uplink a client and roundkB": expect(of_summary("uplink_bytes_per_client_round"), 1e-3, 1),
    "Downlink a client and roundkB": expect(of_summary("downlink_bytes_per_client_round"), 1e-3, 1),
    "Client regrowth%": expect(of_rows("client_regrowth", 2), 100, 3),
    "Server regrowth%": expect(of_rows("server_regrowth", 2), 100, 3),
    "IoU of clients’ masks": expect(of_rows("client_mask_iou"), 1, 3),
    "Training FLOPs of dense%": expect(flops, 100, 1),
    "Rounds to regain it": "never",
    "Seeds": "2 of 3",
  }
  assert expected.items() <= found.items()
  traffic = found["Traffic to 50 % accuracyMB"]
  if algorithm == "topk":
    assert traffic == f"{1e-6 * summaries[0]['bytes_to_target']:.1f} (1 of 2)"
  else:
    assert traffic == expect(of_summary("bytes_to_target"), 1e-6, 1)


def test_every_picture_is_there_and_its_legend_ends_where_the_mean_does(folder, text):
  reader = Reader(text)
  assert {*CURVES.values(), *OF_SUMMARY.values(), MATRIX} <= set(reader.titles)
  for algorithm, name in (("topk", "Top-K"), ("sparsyfed", "SparsyFed")):
    summaries, _ = load(folder, algorithm)
    mean = 100 * np.mean([summary["test_accuracy"] for summary in summaries])
    assert f">{name} {mean:.1f} %<" in svgs_of(text)[0][0]


def test_runs_that_did_not_end_are_listed(text):
  said = " ".join("".join(Reader(text).words).split())
  assert "diverged sweep/topk,2: round 3: <nan>" in said
  assert "unfinished <script>alert(1)<script>: 4 of 6 rounds" in said
  assert "--compilation_cache_dir=<img src=x>" in said
  assert "6 (4 ended, 1 diverged, 1 unfinished)" in said


@pytest.mark.parametrize("place", ["page", "pictures"])
def test_nothing_is_loaded_and_nothing_is_executed(text, place):
  kinds = ("#", "data:image/png", "data:image/svg+xml;base64,")
  if place == "pictures":  # which stand alone, and hold no others
    text, kinds = "".join(svg for svg, _ in svgs_of(text)), ("#", "data:image/png")
  reader = Reader(text)
  names = {tag for tag, _ in reader.tags}
  assert not names & {
    "script",
    "link",
    "iframe",
    "object",
    "embed",
    "base",
    "form",
    "foreignobject",
  }
  targets = [
    value
    for _, attributes in reader.tags
    for name, value in attributes.items()
    if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster")
  ]
  targets += re.findall(r"url\(([^)]*)\)", text)
  assert targets
  assert [target for target in targets if not target.startswith(kinds)] == []
  assert "@import" not in text
  assert not [n for _, attributes in reader.tags for n in attributes if n.startswith("on")]


def test_what_pictures_refer_to_is_their_own(text):
  places = [text, *(svg for svg, _ in svgs_of(text))]
  for place in places:
    tags = Reader(place).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', place)) <= set(ids)
  assert all("url(#" in place for place in places[1:])


def test_pictures_have_words_for_who_does_not_see_them(text):
  drawn = svgs_of(text)
  assert len(drawn) >= len(CURVES) + len(OF_SUMMARY)
  assert all("Top-K" in alt and "SparsyFed" in alt for _, alt in drawn)
  assert all("<text" in svg for svg, _ in drawn)  # which the reader's fonts draw


@pytest.mark.parametrize("column", [*CURVES, *OF_SUMMARY])
def test_a_picture_without_data_is_left_out(monkeypatch, column):
  rng = np.random.default_rng(1)
  rows = make_rows(rng)
  summary = make_summary(rng, rows)
  for place in (*rows, summary):
    if column in place:
      place[column] = None
  run = runs.Run("", make_config(), rows, summary, runs.ENDED, "", {})
  monkeypatch.setattr(pictures, "to_uri", lambda *_: "")
  shown = {picture.title for picture in pictures.draw([runs.Setting({}, [run])])}
  lost = {column: CURVES.get(column) or OF_SUMMARY[column]}
  if column == "test_accuracy":
    lost |= {"x": CURVES["cumulative_bytes"], "y": OF_SUMMARY["shift_round"]}
  assert shown == {*CURVES.values(), *OF_SUMMARY.values()} - set(lost.values())


@pytest.mark.parametrize(
  ("config", "rows", "summary"),
  [
    ({"algorithm": "topk"}, [], None),
    ({"algorithm": "topk"}, [{}], {"test_accuracy": None}),
    ({"algorithm": "mine", "sparsity": None}, [{"round": 1, "train_loss": 1.0}], {"rounds": 1}),
    (make_config(), [{"round": 1, "test_accuracy": 0.5, "layer_density": None}], {"x": 1}),
    (
      make_config(),
      [{"round": 1, "test_accuracy": 0.5, "client_regrowth": 0.0, "layer_density": [0.0, None]}],
      {"test_accuracy": 0.5, "client_accuracies": [0.5, None], "layers": None},
    ),
  ],
)
def test_runs_of_other_versions_are_shown_as_far_as_they_go(tmp_path, config, rows, summary):
  write(tmp_path / "run", config, rows, summary)
  reader = Reader(page.make(runs.read(tmp_path), ""))
  assert "Results" in reader.titles
  assert len(reader.tables[0]) == 2


def test_runs_of_a_strangers_method_differ_by_its_code_where_that_has_changed(tmp_path):
  rng = np.random.default_rng(3)
  for number, (name, code, seed) in enumerate(
    [("./a.py:M", "a", 0), ("./a.py:M", "a", 1), ("./b.py:M", "b", 0), ("./b.py:M", "c", 1)]
  ):
    rows, stranger = make_rows(rng), {"algorithm": name, "method_sha256": code * 64, "a_every": 3}
    write(
      tmp_path / f"run{number}", make_config(seed=seed) | stranger, rows, make_summary(rng, rows)
    )
  report = runs.read(tmp_path)
  assert report.varied == ["algorithm"]
  found = sorted((setting.label, len(setting.runs)) for setting in report.settings)
  assert found == [("./a.py:M", 2), ("./b.py:M (bbbbbbbb)", 1), ("./b.py:M (cccccccc)", 1)]
  assert set(runs.changed_flags(report.runs[0])) == {"algorithm", "a_every", "rounds"}


def test_settings_differ_by_what_their_methods_read(tmp_path):
  """Dense training reads no sparsity, and flags that follow from others are no settings."""
  rng = np.random.default_rng(2)
  configs = [
    make_config(algorithm=algorithm, seed=seed, sparsity=sparsity, client_lr=rate, eval_every=every)
    for algorithm, sparsity, rate, every, seed in (
      ("fedavg", 0.9, 0.5, 1, 0),
      ("fedavg", 0.99, 0.5, 1, 0),  # the same as the one before
      ("topk", 0.9, 0.5, 1, 0),
      ("topk", 0.9, 0.5, 2, 1),
      ("topk", 0.99, 0.5, 1, 0),
      ("topk", 0.99, 0.1, 1, 0),
    )
  ]
  for number, config in enumerate(configs):
    rows = make_rows(rng)
    write(tmp_path / f"run{number}", config, rows, make_summary(rng, rows))
  report = runs.read(tmp_path)
  assert set(report.varied) == {"algorithm", "sparsity", "client_lr"}
  found = [
    (setting.label, [run.config["seed"] for run in setting.runs]) for setting in report.settings
  ]
  assert sorted(found) == [
    ("FedAvg, client_lr=0.5", [0]),
    ("Top-K, sparsity=0.9, client_lr=0.5", [0, 1]),
    ("Top-K, sparsity=0.99, client_lr=0.1", [0]),
    ("Top-K, sparsity=0.99, client_lr=0.5", [0]),
  ]
  assert [run.path for run in report.repeats] == ["run1"]
  assert runs.changed_flags(report.runs[-1]) == {
    "algorithm": "topk",
    "sparsity": 0.99,
    "client_lr": 0.1,
    "rounds": ROUNDS,
    "eval_every": 1,
  }


def test_many_settings_share_pictures_and_dense_training_is_in_each():
  def setting(algorithm, **others):
    run = runs.Run("", make_config(algorithm=algorithm), [], {}, runs.ENDED, "", {})
    return runs.Setting({"algorithm": algorithm, **others}, [run])

  sparse = [
    setting(name, sparsity=s) for name in ("topk", "flash", "zerofl") for s in (0.5, 0.9, 1)
  ]
  looks = pictures.looks_of([setting("fedavg"), *sparse])
  facets = ("sparsity=0.5", "sparsity=0.9", "sparsity=1")
  assert looks[0].facets == facets
  assert [look.facets for look in looks[1:]] == [(facet,) for facet in facets] * 3
  assert {(look.label, look.color) for look in looks} == {
    (METHODS[name].title, pictures.panels.PALETTE[list(METHODS).index(name)])
    for name in ("fedavg", "topk", "flash", "zerofl")
  }
  few = pictures.looks_of([setting("fedavg"), *sparse[:3]])
  assert {look.facets for look in few} == {("",)}
  assert len({(look.color, look.style) for look in few}) == 4


def test_each_method_has_a_look_of_its_own():
  looks = pictures.panels.looks_of(list(METHODS))
  assert len(set(looks)) == len({color for color, _ in looks}) == len(METHODS)
  assert [color for color, _ in looks[:8]] == list(pictures.panels.PALETTE)
  assert len(set(pictures.panels.looks_of(["topk"] * 4))) == 4


def test_a_single_point_is_seen_whatever_the_style():
  one, two = np.ones(1), np.arange(1.0, 3)
  lines = [
    pictures.panels.Line(x, 10 * x, str(i), "#0072B2", style)
    for i, (x, style) in enumerate([(one, "--"), (two, "--"), (two, "-")])
  ]
  panel = pictures.panels.Panel("a", "%", lines)
  (axes,) = pictures.panels.make_figure([panel], 1).axes
  assert [line.get_marker() for line in axes.lines] == ["o", "None", "o"]


def test_a_label_is_no_mathematics():
  run = runs.Run("", make_config(), [], {"client_accuracies": [0.25, 0.5]}, runs.ENDED, "", {})
  settings = [runs.Setting({"dataset": name}, [run]) for name in ("npz:$x_1$.npz", "npz:<&>.npz")]
  (picture,) = pictures.draw(settings)
  svg = base64.b64decode(picture.uri.partition(",")[2]).decode()
  assert ">dataset=npz:$x_1$.npz<" in svg
  assert ">dataset=npz:&lt;&amp;&gt;.npz<" in svg
  assert picture == pictures.draw(settings)[0]  # the same runs make the same page


def test_long_curves_are_averaged_in_blocks():
  values = np.random.default_rng(3).uniform(size=7)
  rows = [{"round": i + 1, "x": value} for i, value in enumerate(values)]
  rows.insert(3, {"round": 3.5, "x": None})
  blocks = pictures.in_blocks(rows, "x", 3)
  assert [block["round"] for block in blocks] == [3, 6, 7]
  expected = [values[:3].mean(), values[3:6].mean(), values[6]]
  np.testing.assert_allclose([block["x"] for block in blocks], expected)


def test_a_sweep_of_which_runs_are_missing_is_named_and_its_files_are_not_shown_twice(tmp_path):
  write(tmp_path / "sweep" / "run", make_config(), [{"round": 1}], {"test_accuracy": 0.5})
  (tmp_path / "sweep" / "grid.json").write_text(
    '{"seed": ["0", "1"], "algorithm": ["a", "b", "c"]}'
  )
  picture = tmp_path / "sweep" / "study.png"
  imsave(picture, np.random.default_rng(4).uniform(size=(4, 5, 3)))
  for name in ("sweep/sweep.png", "sweep/run/curves.png"):
    shutil.copy(picture, tmp_path / name)
  table = "| method | accuracy |\n|---|---:|\n| Top-K | 1 ± 2 |\n"
  (tmp_path / "sweep" / "table.md").write_text(table.replace("1 ± 2", "drawn anew"))
  (tmp_path / "sweep" / "study.md").write_text(
    f"# A <b>study</b>\n\n![curve](study.png)\n\n[link](javascript:x) <script>\n\n{table}"
  )
  text = page.make(runs.read(tmp_path), "")
  reader = Reader(text)
  assert reader.tables[1:] == [[["method", "accuracy"], ["Top-K", "1 ± 2"]]]
  images = [attributes for tag, attributes in reader.tags if tag == "img"]
  data = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images]
  assert data == [picture.read_bytes()]
  assert images[0]["alt"] == "sweep/study.png"
  said = "".join(reader.words)
  assert "1 of the sweep’s 6 runs have begun" in said
  assert "A <b>study</b>" in said and "drawn anew" not in said and "curve]" not in said
  assert not {"a", "script", "b"} & {tag for tag, _ in reader.tags}
  (tmp_path / "sweep" / "grid.json").write_text('[{"seed": ["0"]}]')  # of a study
  assert runs.read(tmp_path).incomplete == {}


def test_the_command_writes_the_page_and_replaces_its_own(tmp_path, monkeypatch, capsys):
  write(tmp_path / "run", make_config(), [{"round": 1}], {"test_accuracy": 0.25})
  out = tmp_path / "page.html"
  monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "run"), "--out=a b.html"])
  for _ in range(2):
    run_command(tmp_path / "run", f"--out={out}")
    assert "1 runs" in capsys.readouterr().out
  said = "".join(Reader(out.read_text()).words)
  assert f"python -m experiments.report {tmp_path}/run '--out=a b.html'" in said
  out.write_text("mine")
  run_command(tmp_path / "run", f"--out={out}", "--overwrite")
  assert "25.00" in out.read_text()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "RUNS (left out)"),
    (["{}/run", "{}/run"], "RUNS ("),
    (["{}/nowhere"], "RUNS={}/nowhere: must be a folder"),
    (["{}/empty"], "RUNS={}/empty: must hold runs"),
    (["{}/broken"], "{}/broken/run/config.json: must be JSON"),
    (["{}/list"], "{}/list/run/summary.json: must be a JSON object"),
    (["{}/torn"], "{}/torn/run/metrics.jsonl, line 1: not JSON"),
    (["{}/run", "--out={}/mine.html"], "--out={}/mine.html: exists and is no page"),
    (["{}/run", "--out={}/empty"], "--out={}/empty: must be a file"),
    (["{}/run", "--out={}/nowhere/page.html"], "--out={}/nowhere/page.html: must be in a folder"),
    (["{}/run", "--style=x"], "Unknown command line flag 'style'"),
  ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  for name in ("run", "broken/run", "list/run", "torn/run"):
    write(tmp_path / name, make_config(), [{"round": 1}], {"test_accuracy": 0.5})
  (tmp_path / "broken" / "run" / "config.json").write_text("{")
  (tmp_path / "list" / "run" / "summary.json").write_text("[1]")
  (tmp_path / "torn" / "run" / "metrics.jsonl").write_text('{"rou\n{"round": 1}\n')
  (tmp_path / "empty").mkdir()
  mine = tmp_path / "mine.html"
  mine.write_text("mine")
  with pytest.raises(SystemExit) as exit:
    run_command(*(argument.format(tmp_path) for argument in arguments))
  error = capsys.readouterr().err
  assert exit.value.code == 2
  assert error.count("\n") == 1 and message.format(tmp_path) in error
  assert mine.read_text() == "mine" and not (tmp_path / "report.html").exists()


def test_no_width_makes_the_page_scroll_sideways(text, tmp_path):
  chromium = shutil.which("chromium")
  if chromium is None:
    pytest.skip("needs chromium on PATH, to lay the page out")
  widths = (320, 360, 768, 1280)
  frames = "".join(
    f'<iframe style="border:0;width:{width}px;height:600px" srcdoc="{html.escape(text)}"></iframe>'
    for width in widths
  )
  script = """onload = () => { document.title = [...document.querySelectorAll("iframe")].map(
    frame => frame.contentDocument.scrollingElement
  ).map(page => page.scrollWidth - page.clientWidth).join() }"""
  wrapper = tmp_path / "wrapper.html"
  wrapper.write_text(f"<!DOCTYPE html><title></title>{frames}<script>{script}</script>")
  options = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    " --disable-background-networking --disable-component-update --dump-dom"
  )
  shown = subprocess.run(
    [chromium, *options.split(), f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()],
    capture_output=True,
    text=True,
    timeout=60,
  ).stdout
  excess = re.search("<title>(.*?)</title>", shown)
  assert excess is not None and excess[1]
  assert all(int(width) <= 0 for width in excess[1].split(","))
