"""What the pages take from the repository when they are built, so that no number is copied by hand.

The pages are plain Markdown, to be read on GitHub as well. A link out of ``docs/`` leads to the file there; in the site

- a paragraph that is nothing but a link to a Markdown file becomes its content without the title, or, where the
  link names an anchor of that file, the first block of code after it;
- a paragraph that is nothing but a link to a module becomes the module's API;
- ``../increlora/room/module.py#name`` leads to the API, ``../figures/`` to the figures of the site.

``<!-- name: filled by docs/hooks.py -->`` asks for a part that is made from the package; `PARTS` says which there are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from increlora import cli
from increlora.glue.tasks import TASKS
from increlora.methods.families import FAMILIES
from increlora.methods.registry import METHODS
from increlora.study.config import Study
from increlora.training.pretrain_settings import PretrainSettings

ROOT = Path(__file__).parent.parent
PARAGRAPH = r"(?<=\n\n)\[[^\]]+\]\({}\)(?=\n\n|\n*\Z)"
ROLE = re.compile(r":(?:class|func|meth|mod):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The committed figures become files of the site, under ``figures/``."""
    for path in sorted((ROOT / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that lead out of ``docs/`` into what the site has for them, and put the generated parts in."""
    below = "../" * page.file.src_uri.count("/")  # from the page to docs/
    up = re.escape(f"../{below}")
    for pattern, put in (
        (PARAGRAPH.format(rf"{up}([\w/]+\.md)(?:#(\w+))?"), lambda match: included(match[1], match[2])),
        (PARAGRAPH.format(rf"{up}(increlora/[\w/]+)\.py"), lambda match: f"::: {dotted(match[1])}"),
        (rf"\]\({up}(increlora/[\w/]+)\.py#([\w.]+)\)", lambda match: f"][{dotted(match[1])}.{match[2]}]"),
        (rf"\]\({up}figures/", lambda _: f"]({below}figures/"),
        (r"^<!-- (\w+): filled by docs/hooks\.py -->$", lambda match: PARTS[match[1]]()),
    ):
        markdown = re.sub(pattern, put, markdown, flags=re.MULTILINE)
    return markdown


def included(name: str, anchor: str | None) -> str:
    """A file without its title, or the first block of code after an anchor."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if anchor is None:
        return re.sub(r"\A# .+\n+", "", text)
    match = re.search(rf'<a id="{anchor}"></a>.*?^(```.*?^```)$', text, re.DOTALL | re.MULTILINE)
    if match is None:
        raise ValueError(f"{name} has no anchor {anchor} with a block of code after it")
    return match[1]


def dotted(path: str) -> str:
    """The module in a file."""
    return path.removesuffix("/__init__").replace("/", ".")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Some docstrings name objects with Sphinx's roles, which are no Markdown."""
    return ROLE.sub("", html)


def table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [columns, tuple("--" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def configuration() -> str:
    """Every block of a study's config, from its JSON schema."""
    schema, pretraining = Study.model_json_schema(), PretrainSettings.model_json_schema()
    blocks = {"Study": schema, **schema["$defs"], "PretrainSettings": pretraining}
    return "\n\n".join(block(name, blocks[name], blocks) for name in blocks)


def block(name: str, schema: Mapping[str, Any], blocks: Mapping[str, Any]) -> str:
    """A section with a row per field.

    Args:
        name: of the section.
        schema: JSON schema of the block.
        blocks: other blocks that it may refer to.
    """
    required = set(schema.get("required", ()))

    def rows() -> Iterator[tuple[str, ...]]:
        for field, entry in schema["properties"].items():
            default = "required" if field in required else code(entry.get("default"))
            block = blocks[entry["$ref"].rpartition("/")[2]] if "$ref" in entry else {}
            if (block and field not in required) or default == "`{}`":
                default = ""  # the block's own page says what its fields are by default
            meaning = entry.get("description") or block.get("description", "")
            yield f"`{field}`", kind(entry), default, " ".join(meaning.split())

    return f"## {name}\n\n{schema['description']}\n\n" + table(("Field", "Type", "Default", "Meaning"), rows())


def kind(entry: Mapping[str, Any]) -> str:
    """The type of a field in words, with its limits."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in entry:
        return " or ".join(kind(one) for one in entry["anyOf"])
    if "enum" in entry:
        return " or ".join(code(one) for one in entry["enum"])
    if entry.get("type") == "array":
        return f"list of {kind(entry['items'])}" if "items" in entry else "list"
    if entry.get("type") == "object":
        values = next(iter(entry.get("patternProperties", {}).values()), entry.get("additionalProperties"))
        return f"mapping to {kind(values)}" if isinstance(values, Mapping) else "mapping"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {entry[name]}" for name, sign in signs.items() if name in entry)
    return entry.get("type", "any") + (f" ({limits})" if limits else "")


def code(value: Any) -> str:
    """A value as YAML and JSON write it."""
    return f"`{json.dumps(value)}`"


def options() -> str:
    """The options of every method that has any of its own; those of IncreLoRA are the fields of its PEFT config."""
    parts = []
    for method in METHODS.values():
        schema = method.options.model_json_schema()
        if schema.get("properties"):
            schema["description"] = schema["description"].split("\n\n")[0]
            parts.append(block(f"Options of `{method.kind}`", schema, {}))
    return "\n\n".join(parts)


def commands() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = "100"
    return "\n\n".join(helps(cli._parser()))


def helps(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The help of a command and of those below it; one without a help text of its own is not shown."""
    yield f"## {parser.prog}\n\n```text\n{parser.format_help()}```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            shown = {choice.dest for choice in action._choices_actions}
            for name, command in action.choices.items():
                if name in shown:
                    yield from helps(command)


def methods() -> str:
    """One row per method."""

    def rows() -> Iterator[tuple[str, ...]]:
        for method in METHODS.values():
            budget = f"{method.budget.name}, {method.budget.symbol}" if method.budget else "none"
            memory = method.paper_memory.formula if method.paper_memory else "–"
            yield f"`{method.kind}`", method.title, budget, "yes" if method.allocates else "no", memory

    return table(("Kind", "Title", "Budget", "Finds ranks", "Numbers kept in training (paper)"), rows())


def tasks() -> str:
    """One row per task."""

    def rows() -> Iterator[tuple[str, ...]]:
        for task in TASKS.values():
            columns = ", ".join(f"{heading}: {' and '.join(keys)}" for heading, keys in task.columns.items())
            labels = ", ".join(task.labels) or "a score"
            yield f"`{task.name}`", task.title, labels, columns, f"{task.train_rows:,}", f"{task.eval_rows:,}"

    return table(("Task", "Title", "Labels", "Columns of a table", "Training rows", "Evaluation rows"), rows())


def families() -> str:
    """One row per family of encoders."""

    def rows() -> Iterator[tuple[str, ...]]:
        for family in FAMILIES.values():
            yield f"`{family.model_type}`", ", ".join(f"{k}: `{v}`" for k, v in family.matrices.items())

    return table(("`model_type`", "Matrices in a layer"), rows())


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part for part in (configuration, options, commands, methods, tasks, families)
}
