"""Waits for LLaMA-Factory's modules and calls the plugin when one of them has been imported.

LLaMA-Factory discovers no plugins. So `aft_factory_autoload.pth`, which runs at every start of
Python, waits for the import of `llamafactory` and only then imports this module (an import at
every start would cost milliseconds). It holds in torchrun ranks, `datasets.map` workers and the
web UI. Nothing of ours runs in other programs, whatever has become of our folder: so there is no
`torch.backends` entry point. `AFT_FACTORY_AUTOLOAD=0` turns the plugin off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# LLaMA-Factory's module: the module and function that hook into it
HOOKS = {
    "llamafactory.data.parser": ("v0", "hook_parser"),
    "llamafactory.data.converter": ("v0", "hook_converter"),
    "llamafactory.data.loader": ("v0", "hook_loader"),
    "llamafactory.data.template": ("templates", "hook_template"),
    "llamafactory.model.loader": ("templates", "hook_loader"),
    "llamafactory.data.processor.supervised": ("v0_fitting", "hook_processor"),
    "llamafactory.data.processor.unsupervised": ("v0_fitting", "hook_processor"),
    "llamafactory.train.tuner": ("trained", "hook_tuner"),
    "llamafactory.v1.plugins.data_plugins.converter": ("v1", "hook_converter"),
    "llamafactory.v1.core.data_engine": ("v1", "hook_data_engine"),
}


def install() -> None:
    """Start waiting; modules that are imported already are hooked at once. Idempotent."""
    if os.environ.get("AFT_FACTORY_AUTOLOAD") == "0":
        return
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        for name in HOOKS:
            if name in sys.modules:
                _hook(sys.modules[name])


class _Finder:
    """Finds nothing itself; makes the modules in HOOKS call their hook once they are executed."""

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in HOOKS:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)  # type: ignore[arg-type]
            if spec is not None:
                if spec.loader is not None:
                    # An attribute of this one loader object; type(spec.loader) stays as it is.
                    spec.loader.exec_module = _then_hook(spec.loader.exec_module)  # type: ignore[method-assign, assignment]
                return spec
        return None


def _then_hook(exec_module: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_and_hook(module: ModuleType) -> None:
        exec_module(module)
        _hook(module)

    return exec_and_hook


def _hook(module: ModuleType) -> None:
    """Hook into one module. A failure is one line on stderr and stops nothing else."""
    where, function = HOOKS[module.__name__]
    try:
        import importlib

        getattr(importlib.import_module(f"aft_factory.plugin.{where}"), function)(module)
    except Exception as error:  # whatever it is, an unrelated training must go on
        print(
            f"aft-factory: cannot hook into {module.__name__}, "
            f"aggregation data will not load: {error!r}",
            file=sys.stderr,
        )
