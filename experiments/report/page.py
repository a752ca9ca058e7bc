"""What the report's page, page.html, is filled with: one file without network and script."""

import base64
import pathlib
from collections.abc import Iterator
from typing import Any

import jinja2
from markdown_it import MarkdownIt

from experiments.pictures.panels import method_title
from experiments.report import pictures, runs
from experiments.report.runs import DAMAGED, ENDED, UNFINISHED, Measure, Report, Run, Setting
from experiments.terminal import format_seconds

MARK = '<meta name="generator" content="experiments.report">'

_PAGES = jinja2.Environment(
  loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
  autoescape=True,
  trim_blocks=True,
  undefined=jinja2.StrictUndefined,
)


def make(report: Report, command: str) -> str:
  """Writes the page of a report; `command` is what made it, for the last line."""
  heads = ["method" if name == "algorithm" else name for name in report.varied] or ["method"]
  measures = runs.known_measures(report.runs)
  return _PAGES.get_template("page.html").render(
    title=_title(report),
    facts=_facts(report),
    notes=list(_notes(report)),
    heads=heads,
    measures=[(_heading(measure, report), measure.unit) for measure in measures],
    rows=[(_names(setting, report), _cells(setting, measures)) for setting in report.settings],
    runs=report.runs,
    pictures=pictures.draw(report.settings),
    tables=[
      (path, _markdown(_read(report, path).decode(errors="replace"))) for path in report.tables
    ],
    images=[(path, _png(_read(report, path))) for path in report.pictures],
    details=[_details(run, report) for run in report.runs],
    command=command,
  )


def _title(report: Report) -> str:
  names = [method_title(name) for name in _values(report, "algorithm")]
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


def _facts(report: Report) -> list[tuple[str, str]]:
  count = {state: sum(run.state == state for run in report.runs) for state in runs.STATES}
  states = ", ".join(f"{n} {state}" for state, n in count.items() if n)
  counts = [(run.config.get("data") or {}).get("num_clients") for run in report.runs]
  return [
    ("runs", f"{len(report.runs)} ({states})"),
    ("settings", str(len(report.settings))),
    ("seeds", ", ".join(sorted(_values(report, "seed"), key=lambda seed: (len(seed), seed)))),
    ("data set", ", ".join(_values(report, "dataset"))),
    ("model", ", ".join(_values(report, "model"))),
    ("rounds", ", ".join(_values(report, "rounds"))),
    ("clients", ", ".join(dict.fromkeys(str(count) for count in counts if count is not None))),
    ("of them in a round", ", ".join(_values(report, "clients_per_round"))),
  ]


def _notes(report: Report) -> Iterator[tuple[str, str, str]]:
  """Lists what is not in the statistics: state, path, what is said of it."""
  for run in report.runs:
    if run.state == UNFINISHED:
      yield run.state, run.path, _progress(run)
    elif run.state != ENDED:
      yield run.state, run.path, run.note
  for run in report.repeats:
    yield "repeated", run.path, "another run has its flags and seed"
  for path, (found, expected) in report.incomplete.items():
    yield "incomplete", path, f"{found} of the sweep’s {expected} runs have begun"
  for state, reasons in (("refused", report.refused), ("skipped", report.skipped)):
    for path, reason in reasons.items():
      yield state, path, reason


def _progress(run: Run) -> str:
  return f"{run.rounds_done} of {run.config.get('rounds', '?')} rounds"


def _heading(measure: Measure, report: Report) -> str:
  ended = [run for run in report.runs if run.state == ENDED]
  targets = {target for run in ended if (target := run.summary.get("target_accuracy"))}
  if measure.asked_by == "target_accuracy" and len(targets) == 1:
    return measure.title.replace("the target accuracy", f"{100 * targets.pop():g} % accuracy")
  return measure.title


def _names(setting: Setting, report: Report) -> list[str]:
  names = [
    method_title(value) if name == "algorithm" else runs.text(value)
    for name in report.varied
    for value in [setting.values.get(name, "–")]
  ]
  return names or [method_title(_values(report, "algorithm")[0])]


def _cells(setting: Setting, measures: list[Measure]) -> list[str]:
  ended = sum(run.state == ENDED for run in setting.runs)
  total = len(setting.runs)
  seeds = str(total) if ended == total else f"{ended} of {total}"
  return [*(runs.mean_and_deviation(setting.runs, measure) for measure in measures), seeds]


def _read(report: Report, path: str) -> bytes:
  return (report.root / path).read_bytes()


def _png(content: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _markdown(source: str) -> str:
  """Renders Markdown, whose tags, links and pictures stay text: they lead out of the page."""
  parser = MarkdownIt("commonmark", {"html": False}).enable("table")
  parser.disable(["link", "autolink", "image", "reference"])
  # The page shows the pictures that lie beside.
  lines = [line for line in source.splitlines() if not line.lstrip().startswith("![")]
  tokens = parser.parse("\n".join(lines))
  for token in tokens:
    if token.type in ("heading_open", "heading_close"):
      token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"  # the page has two levels of its own
  text = parser.renderer.render(tokens, parser.options, {})
  text = text.replace("<table>", "<div class=scroll><table>").replace("</table>", "</table></div>")
  return str(text)


def _details(run: Run, report: Report) -> tuple[str, Run, list[tuple[str, str]], list[Any] | None]:
  """Says of a run its name, itself, facts, and flags that are not at their defaults."""
  name = report.root.resolve().name if run.path == "." else run.path
  if not run.config:
    return name, run, [("damage", run.note)], None
  seconds = run.summary.get("seconds_per_round")
  versions = run.config.get("versions") or {}
  facts = [
    ("path", run.path),
    ("damage", run.note if run.state == DAMAGED else ""),
    ("rounds", _progress(run)),
    ("a round", _seconds(seconds) if isinstance(seconds, int | float) else ""),
    ("device", str(run.config.get("device") or "")),
    ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
  ]
  changed = [(name, runs.text(value)) for name, value in runs.changed_flags(run).items()]
  return name, run, facts, changed


def _seconds(seconds: float) -> str:
  return f"{seconds:.3g} s" if seconds < 60 else format_seconds(seconds)
