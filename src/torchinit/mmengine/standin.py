"""The stand-in: torchinit's base modules and initializers under the names by which OpenMMLab packages import them."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any, Final

from torch import nn

from torchinit._text import abbreviate, count
from torchinit.errors import RunError
from torchinit.mmengine.log import PACKAGE, log, relay_to_mmengine
from torchinit.mmengine.registry import WEIGHT_INITIALIZERS, bridge

STAND_INS: Final = MappingProxyType(
    {
        "mmengine.model.base_module": "BaseModule ModuleDict ModuleList Sequential",
        "mmengine.model.weight_init": """
            BaseInit Caffe2XavierInit ConstantInit KaimingInit NormalInit PretrainedInit TruncNormalInit UniformInit
            XavierInit bias_init_with_prob caffe2_xavier_init constant_init initialize kaiming_init normal_init
            trunc_normal_ trunc_normal_init uniform_init update_init_info xavier_init""",
    }
)
"""The modules of mmengine that torchinit takes the place of, and the names that they define."""

# A finder makes Python's own import do the rest: the parent package gets its attribute, and a reload works. Modules put
# into `sys.modules` by hand were tried; `mmengine.model.base_module` was then no attribute of `mmengine.model`. Names
# exchanged after mmengine has been imported were tried, too: what it derives from its BaseModule, BaseModel above all,
# keeps MMEngine's, and of two packages that were imported before and after, one would have ours. So late is an error.


class _StandIn(MetaPathFinder, Loader):
    """Finds torchinit where mmengine's own modules are asked for."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(fullname, self) if fullname in STAND_INS else None

    def exec_module(self, module: ModuleType) -> None:
        ours = import_module("torchinit.mmengine")
        module.__doc__ = f"torchinit.mmengine in the place of {module.__name__}, by torchinit.mmengine.install()."
        vars(module).update((name, getattr(ours, name)) for name in STAND_INS[module.__name__].split())
        if "BaseInit" in vars(module):
            bridge()  # mmengine's own initializers register themselves when they are imported


def install() -> None:
    """Put torchinit in the place of MMEngine's initialization, for OpenMMLab's packages as they are.

    One line before mmengine, or a package that is built on it, is first imported:

    >>> install()  # doctest: +SKIP
    >>> from mmengine.runner import Runner  # doctest: +SKIP

    From then on ``mmengine.model.BaseModule`` and the initializers beside it are torchinit's, in mmdet, mmpretrain and
    all others, and what builds from MMEngine's registry of initializers gets them, too. All messages of torchinit are
    in MMEngine's log. A second call does nothing; :func:`uninstall` takes it back.

    Raises RunError if mmengine has imported its own already, or has no such modules, ImportError without mmengine.
    """
    if any(isinstance(finder, _StandIn) for finder in sys.meta_path):
        return
    package = find_spec("mmengine")
    if package is None:
        raise ImportError("torchinit.mmengine.install() needs MMEngine: pip install mmengine")
    if late := [path for path in STAND_INS if path in sys.modules]:
        raise RunError(
            f"{late[0]} has been imported before torchinit.mmengine.install(), so that what is derived from it"
            f" stays MMEngine's: {abbreviate(_users(late)) or 'mmengine'}. Call it as the first line of the program,"
            " before these are imported (custom_imports of a config come too late)"
        )
    places = [f"{place}/model" for place in package.submodule_search_locations or ()]
    lacking = [path for path in STAND_INS if PathFinder.find_spec(path, places) is None]
    if lacking:
        raise RunError(
            f"the mmengine that is installed has no {' and no '.join(lacking)}, which torchinit could stand in for:"
            " it is made for MMEngine 0.10. Import from torchinit.mmengine in your own modules instead"
        )
    sys.meta_path.insert(0, _StandIn())
    PACKAGE.addFilter(relay_to_mmengine)


def uninstall() -> None:
    """Take :func:`install` back: who imports MMEngine's initialization from now on gets MMEngine's.

    Classes that were derived from torchinit's meanwhile stay as they are; a warning of the log names their packages.
    Without a call of :func:`install` it does nothing.

    >>> uninstall()
    """
    finders = [finder for finder in sys.meta_path if isinstance(finder, _StandIn)]
    for finder in finders:
        sys.meta_path.remove(finder)
    PACKAGE.removeFilter(relay_to_mmengine)
    stood_in = [path for path in STAND_INS if isinstance(getattr(sys.modules.get(path), "__loader__", None), _StandIn)]
    if not stood_in:
        return
    for path in stood_in:
        del sys.modules[path]
    theirs = import_module("mmengine.registry").WEIGHT_INITIALIZERS.module_dict
    for name in [name for name, cls in theirs.items() if WEIGHT_INITIALIZERS.module_dict.get(name) is cls]:
        del theirs[name]
    for path in stood_in:
        own, package = import_module(path), import_module("mmengine.model")
        vars(package).update((name, getattr(own, name)) for name in STAND_INS[path].split() if hasattr(package, name))
    if derived := sorted({cls.__module__.partition(".")[0] for cls in _derived()}):
        text = "torchinit.mmengine.uninstall(): classes of %s keep torchinit's base modules as long as this process"
        log(logging.WARNING, text, abbreviate(derived))


def _users(late: Sequence[str]) -> list[str]:
    """The packages that have taken a class of these modules, with the number of their modules that have."""
    taken = {id(vars(sys.modules[path])[name]) for path in late for name in STAND_INS[path].split()}
    users = [name for name, each in sys.modules.items() if taken & set(map(id, getattr(each, "__dict__", {}).values()))]
    packages = Counter(name.partition(".")[0] for name in users if name not in STAND_INS)
    return [f"{package} ({count(number, 'module')})" for package, number in packages.items()]


def _derived() -> Iterator[type]:
    """The classes that are derived from torchinit's base modules, in whatever package but torchinit."""
    classes: list[type[nn.Module]] = [import_module("torchinit.mmengine").BaseModule]
    for cls in classes:  # which grows
        classes += cls.__subclasses__()
        if not cls.__module__.startswith("torchinit."):
            yield cls
