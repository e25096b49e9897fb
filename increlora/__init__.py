"""increlora: IncreLoRA (arXiv 2308.12043) as a PEFT method, and the study that reproduces its paper.

Importing it registers the method with PEFT: at once if PEFT is loaded already, otherwise when it is. Names are loaded
on first use, so that light commands stay light::

    from increlora import IncreLoraConfig, IncreLoraCallback, create_optimizer, export_lora
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from increlora import tuner

__version__ = "0.1.0"
__all__ = ["__version__", "slice_relative_positions", *tuner.EXPORTS]


def __getattr__(name: str) -> Any:
    if name in tuner.EXPORTS:
        return getattr(tuner, name)
    if name == "slice_relative_positions":
        from increlora.training.deberta import slice_relative_positions

        return slice_relative_positions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _RegisterWithPeft(MetaPathFinder, Loader):
    """Loads ``peft`` as it would be loaded anyway, and registers the method with it: PEFT takes seconds to import."""

    asked = False

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "peft" or self.asked:
            return None
        self.asked = True  # by itself, to find the real one
        try:
            spec = find_spec("peft")
        finally:
            self.asked = False
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        module.__loader__ = module.__spec__.loader = self.loader  # type: ignore[union-attr]
        self.loader.exec_module(module)
        tuner.register()


if "peft" in sys.modules:
    tuner.register()
else:
    sys.meta_path.insert(0, _RegisterWithPeft())
