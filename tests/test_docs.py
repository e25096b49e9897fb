"""README, CONTRIBUTING, CHANGELOG and docs: every link leads somewhere, figures are those of committed results."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.study_helpers import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/**/*.md"))
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ANCHOR = re.compile(r'<a id="([^"]+)"></a>')
OBJECT = re.compile(r"\]\((?:\.\./)+(increlora/[\w/]+)\.py#([\w.]+)\)")


def text_of(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What GitHub and MkDocs make of a page's headings, and the anchors that it sets."""
    text = text_of(page)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {word.strip().replace(" ", "-") for word in words} | set(ANCHOR.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(text_of(page)):
        if re.match(r"\w+:", link):
            assert link.startswith("https://"), link
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix != ".py":  # the next test's
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_functions_that_the_method_page_names_exist() -> None:
    """Without MkDocs, which checks this as well."""
    names = {name for page in PAGES for name in OBJECT.findall(text_of(page))}
    assert len(names) > 15
    for module, name in names:
        thing = importlib.import_module(module.replace("/", "."))
        for part in name.split("."):
            thing = getattr(thing, part)


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_plain_markdown(page: Path) -> None:
    """Nothing that only MkDocs or its plugins understand: the pages are read on GitHub as well."""
    text = page.read_text(encoding="utf-8")
    for mark in ("--8<--", "{{", "::: ", "!!! ", "][increlora."):
        assert mark not in text
    for formula in re.findall(r"\$\$?.+?\$\$?", FENCE.sub("", text)):
        assert not re.search(r"\\[^a-zA-Z ]", formula), f"GitHub drops a backslash before a sign: {formula}"


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    named = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    listed = set(re.findall(r"[\w/]+\.md", str(config["nav"])))
    assert named == listed


def test_every_module_is_in_the_api() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for room in ("tuner", "methods", "glue", "training", "study", "report")
        for path in (ROOT / "increlora" / room).glob("*.py")
        if path.stem != "__init__"
    }
    shown = {
        name
        for page in (ROOT / "docs/api").glob("*.md")
        for name in re.findall(r"^\[`([\w.]+)`\]\(", page.read_text(), re.M)
    }
    assert modules == shown - {"increlora.glue.corpus"}


def test_readme_shows_the_committed_results() -> None:
    """Mend it with `python scripts/readme.py`."""
    spec = importlib.util.spec_from_file_location("readme", ROOT / "scripts" / "readme.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.filled(text) == text


@pytest.mark.slow
def test_site_builds(tmp_path: Path) -> None:
    """Strictly: every link, anchor and named object is there."""
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "reference/configuration/index.html").read_text(encoding="utf-8")
    assert "lora_dropout" in page
    assert "execution" in page
    assert "increlora plan" in (tmp_path / "reference/commands/index.html").read_text(encoding="utf-8")
    assert (tmp_path / "figures/mini_figure4.png").is_file()
    assert "{{ " not in page
    evidence = (tmp_path / "evidence/index.html").read_text(encoding="utf-8")
    assert "Study minilm: measured" in evidence
    assert re.search(r"<td[^>]*>IncreLoRA \(r = 2\)</td>", evidence)
