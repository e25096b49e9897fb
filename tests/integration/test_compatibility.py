"""``docs/compatibility.md`` says what the tables of these tests say.

``python -m tests.integration.test_compatibility`` writes its tables anew.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from increlora import IncreLoraAdamW
from tests.integration import test_quantised, test_tools, test_trainer

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def table(head: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def tables() -> dict[str, list[str]]:
    """The tables by the name of their mark in the page."""
    notes: dict[str, int] = {}

    def cell(tool: test_tools.Tool, what: str) -> str:
        reason = tool.cannot.get(what) or tool.inexact.get(what)
        note = f" [{notes.setdefault(reason, len(notes) + 1)}]" if reason else ""
        return ("no" if what in tool.cannot else "yes") + note

    properties = list(test_tools.PROPERTIES.values())
    tools = {name: [cell(tool, what) for what in properties] for name, tool in test_tools.TOOLS.items()}
    checked = list(test_quantised.PROPERTIES.values())
    births = {
        f"`{name}`": ["each its own" if kind is IncreLoraAdamW else "one per tensor"]
        for name, (kind, *_) in test_trainer.OPTIMIZERS.items()
    }
    schedules = ", ".join(f"`{name}`" for name in test_trainer.SCHEDULES)
    return {
        "tools": [*table(["", *properties], tools), "", *(f"{number}. {reason}" for reason, number in notes.items())],
        "bases": table(["", *checked], dict.fromkeys(test_quantised.BASES, ["yes"] * len(checked))),
        "optimizers": table(["`optim`", "step count and warmup of components"], births),
        "schedules": [f"Schedules: {schedules}."],
    }


def filled(page: str) -> str:
    for name, lines in tables().items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}\n" + "\n".join(lines) + f"\n\n{end}{rest.split(end)[1]}"
    return page


def functions_taking(argument: str, module: ModuleType) -> set[str]:
    functions: dict[str, Any] = {name: value for name, value in vars(module).items() if name.startswith("test_")}
    return {name for name, value in functions.items() if argument in inspect.signature(value).parameters}


def test_page_is_that_of_the_tests() -> None:
    assert filled(PAGE.read_text(encoding="utf-8")) == PAGE.read_text(encoding="utf-8")


def test_every_property_has_its_test_and_every_note_its_property() -> None:
    assert functions_taking("tool", test_tools) == test_tools.PROPERTIES.keys()
    assert functions_taking("base", test_quantised) == test_quantised.PROPERTIES.keys()
    for tool in test_tools.TOOLS.values():
        assert {*tool.cannot, *tool.inexact} <= set(test_tools.PROPERTIES.values())
    source = inspect.getsource(test_tools) + inspect.getsource(test_quantised)
    assert set(re.findall(r"pytest\.skip\((.*?)\)", source)) == {"reason"}  # no skip but those of the tables


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
