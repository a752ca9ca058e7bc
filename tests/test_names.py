"""No method is named outside its own file, the list of methods, presets and docs."""

import functools
import io
import pathlib
import re
import tokenize

import pytest

from sparsyfed_jax.algorithms import METHODS

ROOT = pathlib.Path(__file__).parents[1]
LIST = ROOT / "sparsyfed_jax" / "algorithms" / "__init__.py"
FILES = sorted(
  path
  for room in ("sparsyfed_jax", "experiments")
  for path in (ROOT / room).rglob("*.py")
  if path != LIST
)
# What begins a line of its own is a docstring; so is what follows nothing but layout.
LAYOUT = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.COMMENT)


def words(text):
  """Lists identifiers and texts of a program, without comments and docstrings."""
  last = tokenize.NEWLINE
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    is_docstring = token.type == tokenize.STRING and last in (*LAYOUT, tokenize.ENCODING)
    if token.type not in (tokenize.COMMENT, *LAYOUT) and not is_docstring:
      yield token.string
    if token.type not in (tokenize.NL, tokenize.COMMENT):
      last = token.type


@functools.cache
def words_of(path):
  return list(words(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("record", METHODS.values(), ids=lambda record: record.name)
def test_a_method_is_named_in_its_own_file_alone(record):
  own = LIST.with_name(f"{record.name}.py")
  assert any(record.name in word for word in words_of(own))
  named = re.compile(rf"(?<![\w.]){record.name}(?![\w.]|_jax)|['\"]{re.escape(record.title)}['\"]")
  found = [
    f"{path.relative_to(ROOT)}: {word}"
    for path in FILES
    if path != own
    for word in words_of(path)
    if named.search(word)
  ]
  assert not found


def test_a_name_in_a_text_or_an_identifier_is_found():
  assert list(words('"""topk"""\nx = "topk"  # topk\n')) == ["x", "=", '"topk"', ""]
  assert "topk" in list(words("import topk\n"))
