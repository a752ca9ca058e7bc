"""The report's page: one HTML file that needs no network and no script."""

import base64
import html
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt

from experiments.report import pictures, runs
from experiments.report.drawing import Chapter, Key, Picture, rename_ids
from experiments.report.runs import DAMAGED, DIVERGED, ENDED, Measure, Report, Run
from experiments.terminal import format_seconds

MARK = '<meta name="generator" content="experiments.report">'

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --ink: #1f1f1f; --soft: #5c5c5c; --line: #dddddb;
  --accent: #0072b2; --warn: #a84300; --stripe: #f9f9f8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16181b; --card: #202327; --ink: #e9e9e7; --soft: #a9adb2; --line: #3a3e44;
    --accent: #6cb8e8; --warn: #f0975a; --stripe: #262a2f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1180px; padding: 20px 16px 40px; overflow-wrap: anywhere;
  background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.4em 0 0.3em; }
h2 { font-size: 1.2rem; margin: 2em 0 0.6em; }
h3, h4, h5, h6 { font-size: 1rem; margin: 0 0 0.5em; }
p { margin: 0.4em 0; max-width: 75ch; }
a { color: var(--accent); }
code { font: 0.875em ui-monospace, monospace; }
.soft, figcaption { color: var(--soft); }
p.soft { font-size: 0.85rem; line-height: 1.4; max-width: 100ch; margin-bottom: 10px; }
.facts { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 1em 0 0; padding: 0; }
.facts div { min-width: 0; }
.facts dt { color: var(--soft); font-size: 0.8rem; }
.facts dd { margin: 0; font-weight: 600; }
.scroll {
  overflow-x: auto; max-width: 100%; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px;
}
table {
  border-collapse: separate; border-spacing: 0; min-width: 100%; font-size: 0.9rem;
  overflow-wrap: normal; font-variant-numeric: tabular-nums;
}
th, td { padding: 7px 12px; text-align: right; vertical-align: top; white-space: nowrap; }
thead th {
  font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 6.2em;
  border-bottom: 2px solid var(--line); line-height: 1.25;
}
thead th small { display: block; font-weight: 400; color: var(--soft); }
tbody tr:nth-child(even) > * { background: var(--stripe); }
tbody tr:nth-child(odd) > * { background: var(--card); }
thead th { background: var(--card); }
th.name, td.name { text-align: left; }
tbody th { font-weight: 600; }
tr > .name:first-child { position: sticky; left: 0; box-shadow: 1px 0 var(--line); }
.deviation { color: var(--soft); font-size: 0.85em; }
.note { border-left: 3px solid var(--warn); padding-left: 12px; margin: 1em 0; }
.note ul { margin: 0.2em 0; padding-left: 1.2em; }
.state { color: var(--warn); font-weight: 600; }
.pictures {
  display: grid; gap: 16px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
}
.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
section > .keys { margin: 0 0 10px; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure h3 { margin-bottom: 0.4em; }
/* Pictures are drawn dark on white, also on a dark page. */
.card {
  background: #ffffff; color: #1f1f1f; border: 1px solid var(--line); border-radius: 8px;
  padding: 8px; -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
.card svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif; }
.card svg * { stroke-linejoin: round; }
.keys {
  list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 4px 2px; padding: 0;
  font-size: 0.82rem; line-height: 1.35; font-variant-numeric: tabular-nums;
}
.keys li { display: flex; align-items: center; gap: 7px; min-width: 0; }
.keys i { flex: none; width: 24px; height: 0; border-top: 3px solid; }
.keys i.area { width: 12px; height: 12px; border: 0; border-radius: 2px; }
figcaption { font-size: 0.85rem; line-height: 1.4; margin-top: 6px; }
.wide { overflow-x: auto; }
.wide img { display: block; width: 100%; min-width: 620px; height: auto; }
article { margin: 0 0 28px; min-width: 0; }
article .scroll { margin: 0.6em 0; width: fit-content; }
article pre { overflow-x: auto; }
article td, article th { text-align: left; }
details {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 6px 0;
  padding: 0 12px;
}
summary { cursor: pointer; padding: 7px 0; }
details dl {
  display: grid; grid-template-columns: minmax(5.5em, max-content) minmax(0, 1fr); gap: 4px 16px;
  margin: 0; padding: 4px 0 12px; font-size: 0.9rem;
}
details dt { color: var(--soft); }
details dd { margin: 0; }
details code { display: inline-block; max-width: 100%; margin-right: 0.6em; }
footer { margin-top: 2.5em; border-top: 1px solid var(--line); font-size: 0.85rem; }
@media (max-width: 600px) {
  body { padding: 12px 10px 32px; }
  th, td { padding: 6px 8px; }
  tr > .name:first-child {
    min-width: 6.5em; max-width: 10em; white-space: normal; overflow-wrap: anywhere;
  }
}
@media print {
  :root { --page: #ffffff; --card: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb;
    --stripe: #ffffff; --warn: #a84300; --accent: #000000; }
  body { max-width: none; padding: 0; font-size: 11px; }
  .pictures { grid-template-columns: 1fr 1fr; }
  .scroll, .wide { overflow: visible; }
  .scroll table { font-size: 0.8em; }
  th, td { padding: 3px 5px; }
  thead th { min-width: 0; }
  .wide img { min-width: 0; }
  .small { grid-template-columns: 1fr 1fr 1fr; }
  h2, h3, section > p, section > .keys { break-after: avoid; }
  tr, details { break-inside: avoid; }
}
"""

_BORDERS = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}


def make(report: Report, command: str) -> str:
  """Writes the page.

  Args:
    report: what was read.
    command: which made the page, for its last line.
  """
  title = _title(report)
  parts = [
    f"<h1>{_text(title)}</h1>",
    _facts(report),
    _notes(report),
    "<h2>Results</h2>",
    _results(report),
    *(_chapter(i, chapter) for i, chapter in enumerate(pictures.draw(report.settings))),
    _documents(report),
    "<h2>Runs</h2>",
    *(_details(run, report) for run in report.runs),
    f"<footer><p class=soft>Made by <code>{_text(command)}</code></p></footer>",
  ]
  head = (
    f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{MARK}\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
  )
  return head + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"


def _text(value: Any) -> str:
  return html.escape(str(value))


def _title(report: Report) -> str:
  methods = _values(report, "algorithm")
  names = [runs.method_name(name) for name in methods]
  if len(names) > 4:
    who = f"{len(names)} methods"
  else:
    who = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
  where = _values(report, "dataset")
  return f"{who} on {where[0]}" if len(where) == 1 else f"{who} on {len(where)} data sets"


def _values(report: Report, name: str) -> list[str]:
  """The values of a flag, each once, in the order of the table."""
  ordered = [run for setting in report.settings for run in setting.runs]
  return list(dict.fromkeys(runs.text(runs.given_flags(run).get(name)) for run in ordered))


def _facts(report: Report) -> str:
  count = {state: sum(run.state == state for run in report.runs) for state in runs.STATES}
  states = ", ".join(f"{n} {state}" for state, n in count.items() if n)
  counts = ((run.config.get("data") or {}).get("num_clients") for run in report.runs)
  clients = dict.fromkeys(str(count) for count in counts if count is not None)
  facts = [
    ("runs", f"{len(report.runs)} ({states})"),
    ("settings", len(report.settings)),
    ("seeds", ", ".join(sorted(_values(report, "seed"), key=lambda seed: (len(seed), seed)))),
    ("data set", ", ".join(_values(report, "dataset"))),
    ("model", ", ".join(_values(report, "model"))),
    ("rounds", ", ".join(_values(report, "rounds"))),
    ("clients", ", ".join(clients)),
    ("of them in a round", ", ".join(_values(report, "clients_per_round"))),
  ]
  cells = (f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in facts if v)
  return f"<dl class=facts>{''.join(cells)}</dl>"


def _notes(report: Report) -> str:
  """Says what is not in the statistics."""
  lines = []
  for run in report.runs:
    if run.state == ENDED:
      continue
    path = f"<code>{_text(run.path)}</code>"
    if run.state in (DIVERGED, DAMAGED):
      lines.append(f"<span class=state>{run.state}</span> {path}: {_text(run.note)}")
    else:
      done = f"{run.rounds_done} of {run.config.get('rounds', '?')} rounds"
      lines.append(f"<span class=state>unfinished</span> {path}: {_text(done)}")
  for run in report.repeats:
    path = f"<code>{_text(run.path)}</code>"
    lines.append(f"<span class=state>repeated</span> {path}: another run has its flags and seed")
  for path, (found, expected) in report.incomplete.items():
    lines.append(
      f"<span class=state>incomplete</span> <code>{_text(path)}</code>: {found} of the sweep’s"
      f" {expected} runs have begun"
    )
  for state, reasons in (("refused", report.refused), ("skipped", report.skipped)):
    for path, reason in reasons.items():
      lines.append(f"<span class=state>{state}</span> <code>{_text(path)}</code>: {_text(reason)}")
  if not lines:
    return ""
  items = "".join(f"<li>{line}</li>" for line in lines)
  return f"<div class=note><p>Not in the means of the table:</p><ul>{items}</ul></div>"


def _results(report: Report) -> str:
  measures = runs.known_measures(report.runs)
  heads = ["method" if name == "algorithm" else name for name in report.varied] or ["method"]
  head = "".join(f"<th class=name>{_text(name)}</th>" for name in heads)
  head += "".join(f"<th>{_heading(measure, report)}</th>" for measure in measures)
  lines = []
  is_partial = False
  for setting in report.settings:
    cells = [
      runs.method_name(value) if name == "algorithm" else runs.text(value)
      for name in report.varied
      for value in [setting.values.get(name, "–")]
    ] or [runs.method_name(_values(report, "algorithm")[0])]
    names = "".join(f"<th class=name scope=row>{_text(cell)}</th>" for cell in cells)
    statistics = [runs.mean_and_deviation(setting, measure) for measure in measures]
    is_partial |= any(value.endswith(")") for value in statistics)
    values = "".join(f"<td>{_cell(value)}</td>" for value in statistics)
    ended = sum(run.state == ENDED for run in setting.runs)
    total = len(setting.runs)
    seeds = str(total) if ended == total else f"{ended} of {total}"
    lines.append(f"<tr>{names}{values}<td>{seeds}</td></tr>")
  for run in report.runs:
    if run.state == DAMAGED:
      lines.append(
        f"<tr><th class=name scope=row>{_text(run.path)}</th>"
        f"<td class=name colspan={len(heads) + len(measures)}><span class=state>damaged</span>"
        f" {_text(run.note)}</td></tr>"
      )
  table = (
    "<div class=scroll tabindex=0 role=region aria-label=Results>"
    f"<table><thead><tr>{head}<th>Seeds</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
  )
  caption = "Mean ± standard deviation over the seeds whose runs ended."
  if is_partial:
    caption += " In brackets: how many of them have the value."
  if any("regrowth" in measure.title for measure in measures):
    caption += " Regrowth: mean over the rounds after the first."
  if any("masks" in measure.title for measure in measures):
    caption += " IoU, intersection over union: mean over the rounds in which it was measured."
  return f"{table}<p class=soft>{caption}</p>"


def _heading(measure: Measure, report: Report) -> str:
  title = measure.title
  ended = [run for run in report.runs if run.state == ENDED]
  targets = {target for run in ended if (target := run.summary.get("target_accuracy"))}
  if measure.asked_by == "target_accuracy" and len(targets) == 1:
    title = title.replace("the target accuracy", f"{100 * targets.pop():g} % accuracy")
  return _text(title) + (f"<small>{_text(measure.unit)}</small>" if measure.unit else "")


def _cell(text: str) -> str:
  mean, sign, rest = _text(text).partition(" ± ")
  return f"{mean} <span class=deviation>± {rest}</span>" if sign else mean


def _chapter(number: int, chapter: Chapter) -> str:
  figures = "".join(
    _figure(f"p{number}-{i}-", picture) for i, picture in enumerate(chapter.pictures)
  )
  shape = "pictures small" if chapter.caption else "pictures"  # what shares a caption is compared
  intro = f"<p class=soft>{_text(chapter.caption)}</p>\n" if chapter.caption else ""
  return (
    f"<section><h2>{_text(chapter.title)}</h2>\n{intro}{_legend(chapter.keys)}"
    f'<div class="{shape}">{figures}</div></section>'
  )


def _figure(prefix: str, picture: Picture) -> str:
  label = html.escape(picture.alt, quote=True)
  svg = rename_ids(picture.svg, prefix).replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
  caption = f"<figcaption>{_text(picture.caption)}</figcaption>" if picture.caption else ""
  title = f"<h3>{_text(picture.title)}</h3>" if picture.title else ""
  return f"<figure>{title}<div class=card>{svg}{_legend(picture.keys)}</div>{caption}</figure>\n"


def _legend(keys: Sequence[Key]) -> str:
  return f"<ul class=keys>{''.join(map(_key, keys))}</ul>" if keys else ""


def _key(key: Key) -> str:
  if key.style:
    mark = f'<i style="border-top: 3px {_BORDERS[key.style]} {key.color}"></i>'
  else:
    mark = f'<i class=area style="background: {key.color}"></i>'
  return f"<li>{mark}<span>{_text(key.label)}</span></li>"


def _documents(report: Report) -> str:
  """Shows the tables and pictures that lie between the runs."""
  if not report.tables and not report.pictures:
    return ""
  parts = ["<h2>Found beside the runs</h2>"]
  for path in report.tables:
    source = (report.root / path).read_text(encoding="utf-8", errors="replace")
    parts.append(
      f"<article><p class=soft><code>{_text(path)}</code></p>{_markdown(source)}</article>"
    )
  for path in report.pictures:
    data = base64.b64encode((report.root / path).read_bytes()).decode()
    name = html.escape(path, quote=True)
    parts.append(
      f'<article><figure><div class="card wide"><img alt="{name}"'
      f' src="data:image/png;base64,{data}"></div>'
      f"<figcaption><code>{_text(path)}</code></figcaption></figure></article>"
    )
  return "\n".join(parts)


def _markdown(source: str) -> str:
  """Renders Markdown, whose links and pictures stay text: they lead out of the page."""
  parser = MarkdownIt("commonmark", {"html": False}).enable("table")
  parser.disable(["link", "autolink", "image", "reference"])
  # The page shows the pictures that lie beside.
  lines = [line for line in source.splitlines() if not line.lstrip().startswith("![")]
  tokens = parser.parse("\n".join(lines))
  for token in tokens:
    if token.type in ("heading_open", "heading_close"):
      token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"  # the page has two levels of its own
  text = parser.renderer.render(tokens, parser.options, {})
  text = text.replace("<table>", "<div class=scroll><table>")
  return text.replace("</table>", "</table></div>")


def _details(run: Run, report: Report) -> str:
  if not run.config:
    return (
      f"<details><summary>{_text(run.path)} <span class=state>{run.state}</span></summary>"
      f"<p>{_text(run.note)}</p></details>"
    )
  changed = runs.changed_flags(run)
  flags = "".join(
    f"<code>--{_text(name)}={_text(runs.text(value))}</code> " for name, value in changed.items()
  )
  versions = run.config.get("versions") or {}
  seconds = run.summary.get("seconds_per_round")
  rounds = f"{run.rounds_done} of {run.config.get('rounds', '?')}"
  facts = [
    ("path", f"<code>{_text(run.path)}</code>"),
    ("damage", _text(run.note) if run.state == DAMAGED else ""),
    ("flags", flags or "all at their defaults"),
    ("rounds", _text(rounds)),
    ("a round", _text(_seconds(seconds)) if isinstance(seconds, int | float) else ""),
    ("device", _text(run.config.get("device") or "")),
    ("versions", _text(", ".join(f"{name} {number}" for name, number in versions.items()))),
  ]
  listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts if value)
  accuracy = run.summary.get("test_accuracy")
  said = f"{100 * accuracy:.2f} %" if isinstance(accuracy, int | float) else ""
  state = f" <span class=state>{run.state}</span>" if run.state != ENDED else ""
  name = report.root.resolve().name if run.path == "." else run.path
  return (
    f"<details><summary>{_text(name)}{state} <span class=soft>{said}</span></summary>"
    f"<dl>{listed}</dl></details>"
  )


def _seconds(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds < 60 else format_seconds(seconds)
