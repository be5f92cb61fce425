"""Every row of the page about migration: MMEngine does what its first cell says, and torchinit what its second says."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from torchinit import CheckpointError
from torchinit import mmengine as ours

with warnings.catch_warnings():  # importing it uses deprecated parts of torch
    warnings.simplefilter("ignore")
    import mmengine.model as model_of_mmengine
    import mmengine.runner as runner_of_mmengine

PAGE = Path(__file__).parents[2] / "docs/guides/migration.md"


class Side:
    """A library, and a place for files; what is said and what comes of it is one text."""

    def __init__(self, library: Any, folder: Path) -> None:
        self.library, self.folder = library, folder
        self.loading: Any = ours if library is ours else runner_of_mmengine

    def net(self, *layers: nn.Module, init_cfg: Any = None) -> Any:
        return self.library.Sequential(*layers, init_cfg=init_cfg)

    def carried_out(self, init_cfg: Any, *layers: nn.Module) -> Any:
        net = self.net(*(layers or (nn.Linear(2, 2),)), init_cfg=init_cfg)
        net.init_weights()
        return net

    def text(self, case: Callable[[Side], object]) -> str:
        stream = io.StringIO()
        logger = MMLogger.get_current_instance()
        handlers, logger.handlers[:] = [*logger.handlers], [logging.StreamHandler(stream)]
        logger.handlers[0].setFormatter(logging.Formatter("LOG %(levelname)s %(message)s"))
        try:
            with contextlib.redirect_stdout(stream), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stream.write(f"GAVE {case(self)}\n")
        except Exception as error:  # noqa: BLE001  # of any kind
            kinds = " ".join(cls.__name__ for cls in type(error).__mro__)
            stream.write(f"RAISED {kinds} {error} {traceback.format_exc()[-1000:]}\n")
        finally:
            logger.handlers[:] = handlers
        return stream.getvalue()


def code(side: Side, write: Callable[[Any], object], above: bool = False, init_cfg: Any = None) -> Any:
    """A module with code of its own, or one above it."""

    class Coded(side.library.BaseModule):  # type: ignore[name-defined]  # it is a library's
        def __init__(self) -> None:
            super().__init__(init_cfg)
            self.fc = nn.Linear(2, 2)

        def init_weights(self) -> None:
            super().init_weights()
            write(self)

    return side.net(Coded()) if above else Coded()


def again(model: Any) -> None:
    model.init_weights()
    model.init_weights()


def writes_the_same(side: Side) -> None:
    code(side, lambda module: nn.init.constant_(module.fc.bias, 0.0), above=True, init_cfg=CONSTANT).init_weights()


def in_a_constructor(side: Side) -> str:
    class Built(side.library.BaseModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__(CONSTANT)
            self.fc = nn.Linear(2, 2)
            self.init_weights()

        def init_weights(self) -> None:
            super().init_weights()

    return type(Built()).__name__


def made_empty(side: Side) -> None:
    net = side.net(nn.Linear(2, 2))
    net[0].weight = nn.Parameter(torch.empty(2, 2))
    net[0].to_empty(device="cpu")
    side.net(net.to_empty(device="cpu")).init_weights()


def prefixed(side: Side) -> None:
    torch.save({"a.0.weight": torch.ones(2, 2), "a.0.bias": torch.ones(2)}, side.folder / "a.pth")
    side.carried_out({"type": "Pretrained", "checkpoint": str(side.folder / "a.pth"), "prefix": "a."})


def nothing_fits(side: Side) -> None:
    torch.save({"a.0.weight": torch.ones(2, 2)}, side.folder / "a.pth")
    side.carried_out({"type": "Pretrained", "checkpoint": str(side.folder / "a.pth")})


def delayed(side: Side) -> str:
    logger = MMLogger.get_current_instance()
    handler = logging.FileHandler(side.folder / "late.log", delay=True)
    handler.setLevel(logging.INFO)  # a record would open it
    logger.addHandler(handler)
    try:
        side.carried_out(CONSTANT)
    finally:
        logger.removeHandler(handler)
        handler.close()
    return (side.folder / "late.log").read_text()


def half_done(side: Side) -> str:
    net = side.net(nn.Linear(2, 2), init_cfg={**CONSTANT, "override": {"type": "TruncNormal", "std": 0, "name": "0"}})
    before = net[0].weight.clone()
    with contextlib.suppress(Exception):
        net.init_weights()
    return "unchanged" if torch.equal(before, net[0].weight) else "half written"


def after_an_error(side: Side) -> None:
    net = side.net(nn.Linear(2, 2), init_cfg={"type": "Nobodys"})
    with contextlib.suppress(Exception):
        net.init_weights()
    net.init_cfg = CONSTANT
    sys.stdout.write(f"left behind: {'_params_init_info' in vars(net)}\n")
    net.init_weights()


def expanded(side: Side) -> None:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(1, 2).expand(2, 2))
    side.carried_out(CONSTANT, layer)


class Counting(nn.Module):
    """A layer whose weight is a buffer of whole numbers."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        if isinstance(made, nn.Parameter):
            self.weight = made
        else:
            self.register_buffer("weight", made)


def counted(side: Side, made: Any) -> list[int]:
    net = side.carried_out({"type": "Constant", "val": 3, "layer": ["Linear", "Counting"]}, Counting(made))
    values: list[int] = net[0].weight.tolist()
    return values


def on_meta(side: Side) -> None:
    side.carried_out(CONSTANT, nn.Linear(2, 2, device="meta"))


def adds(side: Side, made: Callable[[], nn.Module]) -> str:
    code(side, lambda module: module.add_module("extra", made()), above=True).init_weights()
    return "added"


def loaded(side: Side, name: str, save: Callable[[Path], object]) -> float:
    save(path := side.folder / name)
    net = side.carried_out({"type": "Pretrained", "checkpoint": str(path)})
    return float(net[0].weight[0, 0].detach())


class Shell:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("CODE RAN",))


def imported(side: Side) -> str:
    sys.modules.pop("this_is_imported", None)
    (side.folder / "this_is_imported.py").write_text("class Init:\n    def __call__(self, module): pass\n", "utf-8")
    sys.path.insert(0, str(side.folder))
    try:
        side.carried_out({"type": "this_is_imported.Init"})
    finally:
        sys.path.pop(0)
        print("imported" if sys.modules.pop("this_is_imported", None) else "not imported")
    return ""


def not_last(side: Side) -> float:
    file = {"0.0.weight": torch.full((2, 2), 7.0), "0.0.bias": torch.ones(2)}
    torch.save(file, side.folder / "a.pth")
    inner = side.net(nn.Linear(2, 2), init_cfg=CONSTANT)
    entry = {"type": "mmengine.Pretrained", "checkpoint": str(side.folder / "a.pth")}
    return float(side.carried_out(entry, inner)[0][0].weight[0, 0].detach())


def schemes(side: Side) -> str:
    if side.library is not ours:
        find = runner_of_mmengine.CheckpointLoader._get_checkpoint_loader
        return " ".join(find(f"{scheme}://a").__name__ for scheme in ("https", "open-mmlab", "mmcls", "s3", "pavi"))
    raised = []
    for source in ("http://127.0.0.1/a.pth", "s3://a", "petrel://a", "pavi://a", "open-mmlab://a", "mmcls://a"):
        with pytest.raises(CheckpointError) as caught:
            ours.load_checkpoint(nn.Linear(2, 2), source)
        raised.append(str(caught.value))
    return " | ".join(raised)


def weight_norm(layer: nn.Linear) -> nn.Module:
    module: nn.Module = nn.utils.weight_norm(layer)
    return module


CONSTANT = {"type": "Constant", "val": 3, "layer": "Linear"}
LSTM = {"type": "Constant", "val": 1, "layer": "LSTM"}
NEVER = {"type": "Xavier", "distribution": "nobodys", "layer": "Conv2d"}

CASES: dict[str, tuple[Callable[[Side], object], str, str]] = {
    "the log compares means": (
        writes_the_same,
        r"fc.bias - [^\n]*\n(ConstantInit)",
        r"fc.bias - [^\n]*\n(Initialized by user-defined `init_weights` in Coded)",
    ),
    "the log prints `Loads checkpoint by": (prefixed, r"\nLoads checkpoint by", r"\nLOG INFO Loads checkpoint by"),
    "an `init_weights` that a constructor calls": (
        in_a_constructor,
        r"(?s)LOG INFO.*GAVE Built",
        r"(?s)^(?!.*LOG INFO).*GAVE Built",
    ),
    "a write by the top module's own": (
        lambda side: code(side, lambda module: nn.init.constant_(module.fc.weight, 5.0)).init_weights(),
        "fc.weight - [^\n]*\nThe value is the same",
        r"fc.weight - [^\n]*\nInitialized by user-defined",
    ),
    "the whole log comes again": (
        lambda side: again(side.net(nn.Linear(2, 2))),
        r"(?s)0.weight.*called more than once.*0.weight",
        r"(?s)0.weight(?!.*0.weight).*called more than once",
    ),
    "`layer` that matches nothing": (
        lambda side: side.carried_out({**CONSTANT, "layer": "Linaer"}),
        r"^(?!.*WARNING)",
        r"LOG WARNING .* matches none of 1 module; did you mean 'Linear'",
    ),
    "a `BaseModule` below a plain container": (
        lambda side: side.carried_out(None, nn.Sequential(side.net(nn.Linear(2, 2), init_cfg=CONSTANT))),
        r"^(?!.*WARNING)",
        r"LOG WARNING init_weights of Sequential does not reach 0.0",
    ),
    "a parameter that is lazy": (
        lambda side: side.carried_out({**CONSTANT, "layer": "Conv2d"}, nn.LazyLinear(2)),
        "RAISED ",
        r"0.weight - no shape yet",
    ),
    "a parameter made with `torch.empty`": (made_empty, r"^(?!.*WARNING)", "LOG WARNING nobody has written"),
    "a checkpoint of which nothing fits": (
        nothing_fits,
        r"(?s)do not match exactly(?!.*0 of 2)",
        r"(?s)do not match exactly.*0 of 2 tensors match the model. With prefix='a.' 1 of 2 match",
    ),
    "a file handler made with `delay=True`": (delayed, "RAISED AttributeError", "0.weight - torch.Size"),
    "a weight that its module computes anew": (
        lambda side: side.carried_out(CONSTANT, weight_norm(nn.Linear(2, 2))),
        r"^(?!.*WARNING)",
        "LOG WARNING 0.weight is neither a parameter nor a buffer: .* is not saved",
    ),
    "a scope that has no registry": (
        lambda side: side.carried_out({**CONSTANT, "_scope_": "torchinti"}),
        r"(?s)WARNING Failed to import.*WARNING Failed to search",
        r"WARNING _scope_ 'torchinti' has no registry of weight initializers, .* did you mean 'torchinit'\?",
    ),
    "`bias_prob` outside (0, 1)": (
        lambda side: side.library.bias_init_with_prob(1.5),
        "GAVE nan|math domain|invalid value",
        "RAISED ValueError",
    ),
    "an `init_cfg` that fails halfway": (half_done, "GAVE half written", "GAVE unchanged"),
    "after an exception `_params_init_info` stays": (
        after_an_error,
        r"(?s)left behind: True(?!.*0.weight)",
        r"(?s)left behind: False.*0.weight",
    ),
    '`layer="LSTM"` crashes': (
        lambda side: side.carried_out(LSTM, nn.LSTM(2, 2)),
        "RAISED AttributeError",
        r"WARNING layer 'LSTM' .* without weight or bias; name its parameters instead: name='\*\*.",
    ),
    "`TruncNormal` with `a == b`": (
        lambda side: side.carried_out({"type": "TruncNormal", "a": 1, "b": 1, "layer": "Linear"})[0].weight.unique(),
        "GAVE tensor",
        "RAISED InitCfgValueError .*ValueError",
    ),
    "`TruncNormal` with `std=0`": (
        lambda side: side.carried_out({"type": "TruncNormal", "std": 0, "layer": "Linear"}),
        "RAISED ZeroDivisionError",
        r"RAISED InitCfgValueError .*ValueError .* needs std > 0",
    ),
    "a `distribution` that does not exist": (
        lambda side: side.carried_out(NEVER),
        "GAVE Sequential",
        "RAISED InitCfgAssertionError .*AssertionError .* distribution must be",
    ),
    '`Kaiming` refuses `nonlinearity="gelu"`': (
        lambda side: side.carried_out({"type": "Kaiming", "nonlinearity": "gelu", "layer": "Linear"}),
        "RAISED ValueError .*Unsupported nonlinearity gelu",
        "GAVE Sequential",
    ),
    "a constant is written into an expanded weight": (expanded, "0.weight", "RAISED (?!RuntimeError)"),
    "a `Constant` is written into a buffer": (
        lambda side: counted(side, torch.zeros(2, dtype=torch.int64)),
        r"GAVE \[3, 3\]",
        r"GAVE \[0, 0\]",
    ),
    "any integer parameter crashes": (
        lambda side: counted(side, nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)),
        "RAISED RuntimeError",
        r"GAVE \[0, 0\]",
    ),
    "on the meta device": (
        on_meta,
        "RAISED NotImplementedError",
        r"RAISED RunError .*on the meta device.*call torchinit\.",
    ),
    "a module without parameters that": (
        lambda side: adds(side, nn.ReLU),
        "RAISED AttributeError",
        "GAVE added",
    ),
    "`Pretrained` takes paths as text": (
        schemes,
        "load_from_http load_from_openmmlab load_from_mmcls load_from_ceph load_from_pavi",
        "(?s)sha256" + ".*this kind of source is not registered" * 3 + ".*MMEngine has no weights" * 2,
    ),
    "a checkpoint from `http://` may run any code": (
        lambda side: loaded(side, "a.pth", lambda path: torch.save({"0.weight": Shell()}, path)),
        "RAISED UnpicklingError",
        "RAISED RefusedPickleError CheckpointError .*UnpicklingError",
    ),
    "a folder is a `FileNotFoundError`": (
        lambda side: loaded(side, "folder", lambda path: path.mkdir(exist_ok=True)),
        "RAISED FileNotFoundError",
        "RAISED (FetchError )?CheckpointError .*is a folder",
    ),
    '`type="some.module.Class"` imports': (imported, r"\nimported", r"\nnot imported"),
    '`type="mmengine.Pretrained"` is not put last': (not_last, r"GAVE 3\.0", r"GAVE 3\.0"),
}

NOT_RUN = {
    "the logger is made at the first record": "tests/peers/test_mmengine_page.py and tests/mmengine/test_log.py",
    "a download lies in a cache by its file name": "tests/checkpoints/hub",
}


def rows() -> Iterator[str]:
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] != "MMEngine 0.10.7" and set(cells[0]) != {"-"}:
            yield cells[0]


def test_every_row_has_a_case_and_every_case_a_row() -> None:
    known = [*CASES, *NOT_RUN]
    assert [row for row in rows() if sum(row.startswith(start) for start in known) != 1] == []
    assert [start for start in known if not any(row.startswith(start) for row in rows())] == []


@pytest.mark.parametrize("start", CASES)
def test_the_row_is_true(start: str, tmp_path: Path) -> None:
    case, theirs, own = CASES[start]
    for library, pattern in ((model_of_mmengine, theirs), (ours, own)):
        (folder := tmp_path / library.__name__).mkdir()
        text = Side(library, folder).text(case)
        assert re.search(pattern, text), f"{library.__name__} does not do what the page says:\n{text}"


def test_what_the_page_says_beside_a_case(tmp_path: Path) -> None:
    """The second half of rows that have two."""
    for library in (model_of_mmengine, ours):
        side = Side(library, tmp_path)
        text = side.text(lambda side: adds(side, lambda: nn.Linear(1, 1)))
        assert re.search("RAISED .*AssertionError .*Find a new", text)
    layer = nn.Linear(2, 2, device="meta")
    model_of_mmengine.initialize(layer, CONSTANT)
    text = Side(ours, tmp_path).text(lambda side: side.library.initialize(layer, CONSTANT))
    assert re.search("RAISED RunError", text)
    with_path = ours.Sequential(nn.Linear(2, 2), init_cfg={"type": "Pretrained", "checkpoint": tmp_path / "a.pth"})
    torch.save({"0.weight": torch.full((2, 2), 7.0)}, tmp_path / "a.pth")
    with_path.init_weights()
    assert with_path.get_parameter("0.weight").unique().tolist() == [7.0]
