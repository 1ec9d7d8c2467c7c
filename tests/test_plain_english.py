"""Docstrings, comments and messages are plain English: the field's words, and a verb or a concept first."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("unitrain", "models", "datamodules", "examples")
    for path in (ROOT / folder).rglob("*.py")
)

FIRST_WORD = re.compile(r"(What|Where|When|How|Whether|Why|Who|Of|As|That|Which)\b")
"""First words that start a description by a riddle."""
ARGUMENT = re.compile(
    r"^ +\w+: (of|to|to be|whose|that|which|what|where|when|how|whether|why|by|as|from|in) ", re.IGNORECASE
)
"""Descriptions of arguments that are no noun phrase which stands alone."""
WORDS = {
    r"person|people|somebody|nobody|anybody": "user",
    r"tells?|told|telling|says?|said|saying": "log, report, print",
    r"asks?|asked|asking|questions?": "query, request, probe",
    r"goes on|go on|went on|going on": "resume, continue",
    r"bears? with|patience|patient": "retry policy, backoff",
    r"sound|(?:is|are|was|be|appears?|stays?) whole": "valid, complete",
    r"mend(?:s|ed|ing)?": "fix",
    r"ill|dead": "unhealthy, not responding",
    r"pass(?:es|ed|ing)? over": "ignore, skip",
    r"left out|leaves? out|leaving out": "omitted, skipped",
    r"what is there|what lies|lies?|lay": "existing files; be, stand",
    r"comes? to (?:its|their) end|is over": "exit, finish",
    r"on (?:its|their) way": "in flight",
    r"h[eo]ld against": "compare with",
    r"keeper": "model manager",
    r"likewise|anew|in (?:its|their) stead|fares?": "also; again; instead",
    r"at (?:most|least)(?=\s*(?:[.,;:)]|$))": "maximum, minimum (not after the noun)",
    r"(?<=, )too": "also",
    r"one look|what came of|in words": "say it plainly",
}
"""House words and the field's."""
REFUSED = {
    re.compile(rf"\b(?:{words})\b", re.IGNORECASE | re.MULTILINE): field for words, field in WORDS.items()
}
EXEMPT: dict[str, set[str]] = {
    # Lightning's option; a number follows the words in the message.
    "unitrain/settings.py": {"patience", "at least", "at most"},
}
"""Words that a file needs, by its path: names of other software's options, keys of files that exist."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield docstrings, messages and comments with their lines."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings with their lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield getattr(node, "lineno", 1), text


@pytest.mark.parametrize("file", FILES, ids=str)
def test_words_are_the_field_s(file: Path) -> None:
    """No house word in a docstring, a message or a comment."""
    exempt = EXEMPT.get(str(file), set())
    found = [
        f"{file}:{line}: {match.group(0)!r}; write {field}"
        for line, text in texts(ROOT / file)
        for pattern, field in REFUSED.items()
        for match in pattern.finditer(text)
        if match.group(0).lower() not in exempt
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_docstrings_begin_with_a_verb_or_a_concept(file: Path) -> None:
    """Neither a first line nor an argument is described by a clause that hangs in the air."""
    found = []
    for line, text in docstrings(ROOT / file):
        if FIRST_WORD.match(text):
            found.append(f"{file}:{line}: {text.splitlines()[0]}")
        section = re.search(r"^(Args|Attributes):\n((?: .*\n?|\n)*)", text, re.MULTILINE)
        entries = section.group(2).splitlines() if section else ()
        found.extend(f"{file}:{line}: {entry.strip()}" for entry in entries if ARGUMENT.match(entry))
    assert not found, "\n".join(found)


def test_house_words_are_found() -> None:
    """The patterns match what they are for, and not their neighbours."""
    matching = ["the server says no", "Nobody logs it", "rows, at most", "and that, too", "what lies there"]
    fine = ["deadline", "illegal", "at most 4 rows", "essay", "soundfile", "task", "the wholesale"]
    assert all(any(pattern.search(text) for pattern in REFUSED) for text in matching)
    assert not [text for text in fine for pattern in REFUSED if pattern.search(text)]
