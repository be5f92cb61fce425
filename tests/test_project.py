"""The project's own rules, where no linter knows them: text, sizes, pins."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)$", re.MULTILINE)

# Each class holds one letter, so that this file does not find itself.
FORBIDDEN = {
    "a tracker's number": r"(?i)\b[i]ssues? +#?\d+\b|\(#\d+\)",
    "a path of somebody's machine": r"(?<![\w.])/([w]ork|[r]oot|[h]ome)/|\.\./[s]hared\b",
    "a package registry's host": r"(?i)\b(p[y]pi\.org|p[y]thonhosted\.org|d[o]wnload\.pytorch\.org)\b",
    "work left for later": r"\b(T[O]DO|F[I]XME|X[X]X)\b",
}


def tracked_files() -> list[Path]:
    """Every text file of the project: what git tracks, or without git what lies in the source folders."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        folders = ("src", "tests", "docs", "benchmarks", "examples")
        return [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [ROOT / line for line in listed.stdout.splitlines()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked_files()
        if path.is_file() and path.suffix not in {".json", ".png"} and path.name != "LICENSE"
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


def test_files_stay_readable() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def body_lines(function: ast.FunctionDef) -> int:
    """The lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_stay_short() -> None:
    trees = [ast.parse(path.read_text("utf-8")) for path in SOURCES]
    lengths = sorted(body_lines(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    assert statistics.median(lengths) <= 6
    assert lengths[int(0.9 * len(lengths))] <= 20


def test_the_constraint_files_agree() -> None:
    pins: dict[str, dict[str, str]] = {}
    for path in sorted((ROOT / "constraints").glob("*.txt")):
        for name, version in PIN.findall(path.read_text("utf-8")):
            pins.setdefault(re.sub(r"[._-]+", "-", name).lower(), {})[path.name] = version
    assert pins["torch"] == {"dev.txt": "2.13.0", "peers.txt": "2.13.0"}
    assert {name: seen for name, seen in pins.items() if len(set(seen.values())) > 1} == {}


def test_constraints_hold_nothing_but_pins() -> None:
    for path in (ROOT / "constraints").glob("*.txt"):
        for line in path.read_text("utf-8").splitlines():
            assert line.startswith(("#", "-r ")) or PIN.match(line), f"{path.name}: {line}"


WORKFLOW = ROOT / ".github/workflows/ci.yml"


def test_the_workflow_runs_what_ci_runs() -> None:
    parts = re.findall(r"^part \./dev (\w+)", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)
    workflow = YAML(typ="safe").load(WORKFLOW.read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["part"] == parts
    assert [step["run"] for step in job["steps"] if "run" in step] == ['./dev "$PART"']
    assert job["strategy"]["fail-fast"] is False


def test_the_workflow_may_do_little_and_runs_pinned_actions_alone() -> None:
    text = WORKFLOW.read_text("utf-8")
    workflow = YAML(typ="safe").load(text)
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"]["part"]
    assert "secrets." not in text
    assert "pull_request_target" not in text
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in used)
    # Text of a stranger's branch or title that is pasted into a script would be run.
    assert not re.search(r"run:.*\$\{\{", text)


@pytest.mark.parametrize("page", ["SECURITY.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text("utf-8"))
    assert all((ROOT / link).exists() for link in links)
    assert links or page != "SECURITY.md"


def test_what_the_security_page_names_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    sources = "".join(path.read_text("utf-8") for path in SOURCES)
    variables = set(re.findall(r"TORCHINIT_\w+", text))
    assert variables
    assert {name for name in variables if name not in sources} == set()
