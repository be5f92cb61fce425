"""The log is seen where nobody has configured logging, and stays out of the way where somebody has."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchinit
from tests.logs import unconfigured
from torchinit.mmengine import BaseModule, Sequential, load_checkpoint
from torchinit.mmengine.log import LOGGER, _level_of, log

LINE = re.compile(r"^\d\d/\d\d \d\d:\d\d:\d\d - mmengine - (?P<level>[A-Z]+) - (?P<text>.*)")


class Net(BaseModule):
    """One layer that is initialized, with a warning if asked for."""

    def __init__(self, layer: Any = "Linear") -> None:
        super().__init__({"type": "Constant", "val": 1, "layer": layer})
        self.fc = nn.Linear(2, 1)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINIT_LOG", raising=False)
    _level_of.cache_clear()


def shown(text: str) -> list[tuple[str, str]]:
    """The level and the first line of each record."""
    return [(found["level"], found["text"]) for line in text.splitlines() if (found := LINE.match(line))]


def levels(model: Any, capsys: pytest.CaptureFixture[str]) -> list[str]:
    model.init_weights()
    out, err = capsys.readouterr()
    assert err == ""
    return [level for level, _ in shown(out)]


@unconfigured()
def test_it_is_shown_as_mmengine_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    Net().init_weights()
    text = re.sub(r"^\d\d/\d\d \d\d:\d\d:\d\d", "08/19 16:50:24", capsys.readouterr().out, flags=re.MULTILINE)
    assert text == (
        "08/19 16:50:24 - mmengine - INFO - \nfc.weight - torch.Size([1, 2]): \nConstantInit: val=1, bias=0 \n \n"
        "08/19 16:50:24 - mmengine - INFO - \nfc.bias - torch.Size([1]): \nConstantInit: val=1, bias=0 \n \n"
    )


def test_a_program_of_its_own_shows_it_and_configures_nothing(tmp_path: Path) -> None:
    program = (
        "import logging\n"
        "from torch import nn\n"
        "from torchinit.mmengine import Sequential\n"
        "Sequential(nn.Linear(1, 1), init_cfg=dict(type='Constant', val=1, layer='Linaer')).init_weights()\n"
        "names = [None, 'torchinit', 'torchinit.mmengine']\n"
        "print([(logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr == ""
    assert [level for level, _ in shown(done.stdout)] == ["WARNING", "INFO", "INFO"]
    assert "did you mean 'Linear' (1 module)?" in done.stdout
    assert done.stdout.splitlines()[-1] == "[([], 30), ([], 0), ([], 0)]"


@unconfigured()
def test_it_goes_where_standard_output_goes_at_the_time() -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        Net().init_weights()
    assert len(shown(text.getvalue())) == 2


CONFIGURED: dict[str, Callable[[logging.Handler], None]] = {
    "root": logging.root.addHandler,
    "package": logging.getLogger("torchinit").addHandler,
    "logger": LOGGER.addHandler,
}


@pytest.mark.parametrize("name", CONFIGURED)
@unconfigured()
def test_it_stays_out_of_the_way_as_soon_and_as_long_as_somebody_has_configured_logging(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    assert levels(Net("Linaer"), capsys) == ["WARNING", "INFO", "INFO"]
    CONFIGURED[name](handler)
    assert levels(Net("Linaer"), capsys) == []
    assert stream.getvalue().count("did you mean 'Linear'") == 1  # the root's level keeps the rest out
    LOGGER.setLevel(logging.INFO)
    assert levels(Net(), capsys) == []
    assert stream.getvalue().count("ConstantInit: val=1, bias=0 \n") == 2
    for logger in (logging.root, logging.getLogger("torchinit"), LOGGER):
        logger.removeHandler(handler)
    assert levels(Net(), capsys) == ["INFO", "INFO"]


@unconfigured()
def test_a_null_handler_is_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("torchinit").addHandler(logging.NullHandler())
    assert levels(Net(), capsys) == ["INFO", "INFO"]


@pytest.mark.parametrize("name", ["torchinit.mmengine", "torchinit"])
@unconfigured()
def test_a_level_turns_it_down(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger(name).setLevel(logging.WARNING)
    assert levels(Net("Linaer"), capsys) == ["WARNING"]
    logging.getLogger(name).setLevel(logging.CRITICAL)
    assert levels(Net("Linaer"), capsys) == []
    logging.getLogger(name).setLevel(logging.DEBUG)
    assert levels(Net(), capsys) == ["DEBUG", "INFO", "INFO"]


@pytest.mark.parametrize(
    ("value", "expected"), [("off", []), ("warning", ["WARNING"]), (" Info ", ["WARNING", "INFO", "INFO"]), ("", None)]
)
@unconfigured()
def test_a_variable_turns_it_down(
    value: str, expected: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINIT_LOG", value)
    assert levels(Net("Linaer"), capsys) == (["WARNING", "INFO", "INFO"] if expected is None else expected)


@unconfigured()
def test_a_variable_that_says_something_else_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINIT_LOG", "wraning")
    Net().init_weights()
    first = shown(capsys.readouterr().out)
    assert first[0] == ("WARNING", "TORCHINIT_LOG=wraning is none of off, warning, info; did you mean 'warning'?")
    assert levels(Net(), capsys) == ["INFO", "INFO"]


@unconfigured()
def test_what_turns_all_logging_off_turns_this_off(capsys: pytest.CaptureFixture[str]) -> None:
    logging.disable(logging.INFO)
    try:
        assert levels(Net("Linaer"), capsys) == ["WARNING"]
    finally:
        logging.disable(logging.NOTSET)
    LOGGER.addFilter(lambda record: "Linear" in record.getMessage())
    assert levels(Net("Linaer"), capsys) == ["WARNING"]
    LOGGER.disabled = True
    try:
        assert levels(Net("Linaer"), capsys) == []
    finally:
        LOGGER.disabled = False


@unconfigured()
def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    log(logging.WARNING, "of no concern")
    log(logging.ERROR, "of concern")
    assert shown(capsys.readouterr().out) == [("ERROR", "of concern")]


@unconfigured()
def test_a_file_of_the_logger_gets_it_all_and_the_console_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.FileHandler(tmp_path / "init.log", delay=True)
    logging.getLogger("torchinit").addHandler(handler)
    assert levels(Net(), capsys) == []
    handler.close()
    assert (tmp_path / "init.log").read_text() == (
        "Name of parameter - Initialization information\n"
        "\nfc.weight - torch.Size([1, 2]): \nConstantInit: val=1, bias=0 \n"
        "\nfc.bias - torch.Size([1]): \nConstantInit: val=1, bias=0 \n"
    )


@unconfigured()
def test_what_is_loaded_is_part_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.pth")
    torch.save({"other.weight": torch.ones(1)}, path)
    Sequential(nn.Linear(1, 1), init_cfg={"type": "Pretrained", "checkpoint": path}).init_weights()
    records = shown(capsys.readouterr().out)
    assert [text.split(":")[0] for _, text in records[:4]] == [
        "load model from",
        "Loads checkpoint by local backend from path",
        "The model and loaded state dict do not match exactly",
        path,
    ]
    assert records[3] == (
        "WARNING",
        f"{path}: 0 of 2 tensors match the model. The file has other.weight; the model has 0.weight, 0.bias.",
    )
    load_checkpoint(nn.Linear(1, 1), path, logger="silent")
    assert capsys.readouterr().out == ""
    load_checkpoint(nn.Linear(1, 1), path)
    assert [level for level, _ in shown(capsys.readouterr().out)] == ["INFO", "WARNING", "WARNING"]


@unconfigured()
def test_percent_signs_mean_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log(logging.INFO, "%s", "100 % of %d")
    log(logging.INFO, "50 %")
    assert shown(capsys.readouterr().out) == [("INFO", "100 % of %d"), ("INFO", "50 %")]


@unconfigured()
def test_a_parameter_that_has_no_shape_yet_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    Sequential(nn.LazyLinear(2)).init_weights()
    assert "0.weight - no shape yet: \nThe value is the same" in capsys.readouterr().out


@unconfigured()
def test_recipes_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    torchinit.initialize(nn.Linear(2, 2), {"rules": [{"type": "Normal", "std": 0.1, "layer": "Linear"}]}, seed=0)
    assert capsys.readouterr() == ("", "")


# --- show_log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
@unconfigured()
def test_show_log_shows_it_where_a_program_has_its_own_handlers(level: int, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = io.StringIO()
    logging.basicConfig(level=level, stream=theirs)
    before = [(logger.handlers[:], logger.level) for logger in (logging.root, LOGGER)]
    with torchinit.show_log(), torchinit.show_log():
        assert levels(Net("Linaer"), capsys) == ["WARNING", "INFO", "INFO"]
    assert levels(Net(), capsys) == []
    assert [(logger.handlers[:], logger.level) for logger in (logging.root, LOGGER)] == before
    assert theirs.getvalue().count("INFO:torchinit") == (4 if level == logging.INFO else 0)  # as without it
    assert theirs.getvalue().count("WARNING:torchinit") == 1


@unconfigured()
def test_show_log_keeps_it_in_a_file_and_goes_on_showing_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream, path = io.StringIO(), tmp_path / "initialization.log"
    path.write_text("before\n")
    kept = torchinit.show_log(path)
    with torchinit.show_log(stream):
        assert levels(Net(), capsys) == ["INFO", "INFO"]
        with torchinit.show_log():
            assert levels(Net(), capsys) == ["INFO", "INFO"]  # once, not twice
    kept.close()
    kept.close()
    assert levels(Net(), capsys) == ["INFO", "INFO"]
    text = path.read_text("utf-8")
    assert text == f"before\n{stream.getvalue()}"
    assert [line for _, line in shown(text)] == [""] * 4
    assert text.count("fc.weight - torch.Size([1, 2]): \nConstantInit: val=1, bias=0 \n") == 2


def test_show_log_refuses_what_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^the log goes to a path or a text stream, but got 3$"):
        torchinit.show_log(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"absent/a\.log"):
        torchinit.show_log(tmp_path / "absent" / "a.log")
    with pytest.raises(IsADirectoryError):
        torchinit.show_log(tmp_path)


@unconfigured()
def test_the_report_is_the_same_facts_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    report = Net().init_weights()
    logged = capsys.readouterr().out
    print(report)
    table = capsys.readouterr().out
    for name in ("fc.weight", "fc.bias"):
        assert name in logged
        (row,) = [line for line in table.splitlines() if line.startswith(name)]
        assert row.rstrip().endswith("ConstantInit: val=1, bias=0")


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_show_log_shows_what_initialize_warns_of_once(level: int, capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("torchinit").setLevel(level)
    try:
        for _ in range(2):
            with torchinit.show_log():
                torchinit.initialize(nn.Linear(2, 2), {"type": "Kaiming", "layer": "Linaer"}, seed=0)
    finally:
        logging.getLogger("torchinit").setLevel(logging.NOTSET)
    assert capsys.readouterr().out.count("rules[0] Layer('Linaer') matches none") == 2 * (level == logging.WARNING)
    torchinit.initialize(nn.Linear(2, 2), {"type": "Kaiming", "layer": "Linaer"}, seed=0)
    assert "Linaer" not in capsys.readouterr().out
