"""The checks, in files that name the hundreds of their codes: TI107 is in ``ti1_uninitialized``. New ones are found."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")  # which registers its checks
