"""README and docs: figures are those of docs/results, what they name is there, links lead somewhere."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.benchmarks.tables import TABLES, filled, pages
from tests.unit.docs.reading import PAGES, ROOT, spans

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"([\w./-]+\.(?:py|yaml|sub|sh|json|md|toml|txt))(?::([\w.]+))?")
_BASES = (ROOT, ROOT / "nemo_minordpo")
# files that commands write, the reader's own, and NeMo-Aligner's
_NOT_HERE = re.compile(r"(\.|runs|RUN|examples)/|[\w.-]+\.(json|md|yaml|sh)$")


def test_tables_are_what_the_results_give():
    read = {path.name: path.read_text(encoding="utf-8") for path in pages()}
    stale = [name for name, page in read.items() if filled(page) != page]
    assert not stale, "run: python -m tests.benchmarks.tables"


def test_another_figure_would_be_found():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = page.replace("| dpo | 29.0", "| dpo | 39.0")
    assert changed != page
    assert filled(changed) == page


def test_every_table_is_shown_somewhere():
    shown = set(re.findall(r"<!-- table: (\S+) -->", "".join(path.read_text(encoding="utf-8") for path in pages())))
    assert shown == set(TABLES)


def test_a_place_without_an_end_is_an_error():
    with pytest.raises(ValueError, match="needs its own"):
        filled("<!-- table: demo -->\nno end\n")


def test_readme_is_read_in_minutes():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    first_screen = "\n".join(lines[:30])
    assert "Not proved yet" in first_screen


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    parts = [part for entry in nav for part in entry.values()]
    listed = [part for part in parts if isinstance(part, str)]
    listed += [page for part in parts if isinstance(part, list) for item in part for page in item.values()]
    assert sorted(listed) == sorted(path.name for path in PAGES if path.name != "README.md")


def test_links_lead_to_files_and_headings():
    broken = []
    for path in PAGES:
        for link in _LINK.findall(path.read_text(encoding="utf-8")):
            file, _, anchor = link.partition("#")
            if file.startswith("https://"):
                continue
            target = path.parent / file if file else path
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_files_and_functions_that_are_named_exist():
    lost, counted = [], 0
    for path in PAGES:
        for span in spans(path):
            found = _CODE.fullmatch(span.text)
            if found and (found[2] or not _NOT_HERE.match(span.text)):
                counted += 1
                if not any(_is_there(base / found[1], found[2]) for base in _BASES):
                    lost.append(f"{span.place}: {span.text}")
    assert not lost
    assert counted > 60


def test_a_function_that_is_gone_would_be_found():
    losses = ROOT / "nemo_minordpo/core/losses.py"
    assert _is_there(losses, "minordpo")
    assert not _is_there(losses, "minor")
    model = ROOT / "nemo_minordpo/train/hosts/aligner/minordpo_model.py"
    assert _is_there(model, "MegatronGPTMinorDPOModel.get_ref_policy_logprobs")
    assert not _is_there(model, "MegatronGPTMinorDPOModel.gone")


def _is_there(file, name):
    return file.exists() and (name is None or name in _names(file))


@cache
def _names(file: Path):
    """Functions, classes, their methods and assigned names of a module."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@cache
def _anchors(page: Path):
    """Of its headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower())) for heading in headings}
