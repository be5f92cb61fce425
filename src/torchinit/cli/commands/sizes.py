"""Sizes: a model of another size made out of one that there is: of its weights, or by its hyperparameters."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from torch import nn

from torchinit._text import abbreviate, format_table, plain
from torchinit._version import __version__
from torchinit.api import draft, initialize
from torchinit.checkpoints import Pretrained
from torchinit.checkpoints.adapters import Adapter, HyperClone, Net2Wider, WeightSelection
from torchinit.cli import frame, models
from torchinit.cli.frame import UsageError, command, one_of, option, repeated
from torchinit.errors import TorchinitError
from torchinit.noise import Keyed
from torchinit.plans import local_shards, run
from torchinit.probing import preserves
from torchinit.rules import Name, Rule
from torchinit.serialization.schema import check_number
from torchinit.transfer import Base, Group, Transfer

# --- grow ------------------------------------------------------------------------------------------------------------

_WIDTHS: Final[dict[str, type[Adapter]]] = {"net2net": Net2Wider, "hyperclone": HyperClone, "select": WeightSelection}
_DEPTH = "stack, interleave or identity for more blocks, first or even for fewer, or their numbers: 0,2,4"
_NOISE = "of net2net the standard deviation, of hyperclone the signal to it in decibels"


@command(
    "grow",
    option("old", metavar="OLD", help="a path, a URL or another source of the weights to start from"),
    "--into",
    option("--depth", metavar="HOW", help=_DEPTH),
    option("--width", choices=[*_WIDTHS], help="copies of units, copies of all, or for fewer some of them"),
    option("--noise", type=float, help=_NOISE),
    option("--seed", type=int, default=0, help="where noise and choices come from (default: 0)"),
    "--part --prefix --rename --output --force",
    option("--proof", action="store_true", help="run both models; where a promise is broken, write nothing"),
    option("--old-model", metavar="MODEL", help="the model of OLD, for --proof (default: the factory of --into)"),
    repeated("--old-arg", metavar="KEY=VALUE", help="an argument of it; others are as --arg"),
    option("--atol", type=float, default=1e-5, help="how far apart outputs may be, in their RMS (default: 1e-5)"),
    "--all --json",
)
def run_grow(arguments: Namespace) -> bool:
    """Write the file and print the account; a finding, and no file: the promise is broken."""
    models.check_output(arguments.output, force=arguments.force)
    if arguments.model is None:
        raise UsageError("the model to make is needed: --into MODEL")
    if not (arguments.depth or arguments.width):
        raise UsageError("say what grows: --depth, --width or both; `torchinit apply` loads a file as it is")
    rule = _rule(arguments, grown=True)
    model = models.model_of(arguments, "cpu", arguments.seed)
    plan = draft(model, rule).check(complete=True, strict="model")
    account, path = plan.loads[0], arguments.output
    old = _old(arguments) if arguments.proof or arguments.old_model or arguments.old_arg else None
    run(plan, local_shards(model), Keyed(arguments.seed), stats=False).assert_ok()
    proof = preserves(old, model, atol=arguments.atol) if old else None
    broken = proof is not None and not proof and account.promise != "none"
    if not broken:
        how = {"torchinit.depth": arguments.depth, "torchinit.width": arguments.width}
        origin = {"torchinit.version": __version__, **{key: text for key, text in how.items() if text}}
        models.write_state(path, model.state_dict(), origin)
    proven, output = None if proof is None else proof.to_dict(), None if broken else str(path)
    frame.show(arguments, account, {**account.to_dict(), "proof": proven, "output": output})
    if proof is not None and not arguments.json:
        print(plain(str(proof)))
        if broken:
            print(plain(f"{path} was not written: the promise is broken"))
    return broken


def _rule(arguments: Namespace, *, grown: bool = False) -> Rule:
    with frame.usage_errors():
        more = {"layers": _depth(arguments.depth), "adapt": _width(arguments)} if grown else {}
        Keyed(arguments.seed)
        check_number("--atol", arguments.atol, least=0)
        renames = tuple((old, new) for old, new in arguments.rename)
        source = Pretrained(arguments.old, arguments.prefix, rename=renames, part=arguments.part, **more)
    return Rule(Name("**"), source)


def _depth(text: str | None) -> Any:
    """The layers that ``--depth`` names."""
    if text and "new" in text:
        raise UsageError("--depth: a new block needs rules of its own, and so a recipe; identity has some")
    if text is None or text[:1].isalpha():
        return text
    return [int(each) if each.strip().isdecimal() else each for each in text.split(",")]


def _width(arguments: Namespace) -> dict[str, Adapter]:
    """The adapter that ``--width`` names, for all sites."""
    kind, noise = arguments.width, arguments.noise
    if kind is None or kind == "select":
        if noise is not None:
            raise UsageError("--noise goes with --width net2net or hyperclone")
        return {"**": WeightSelection()} if kind else {}
    word = "noise" if kind == "net2net" else "snr"
    options_of: dict[str, Any] = {"seed": arguments.seed, **({} if noise is None else {word: noise})}
    return {"**": _WIDTHS[kind](**options_of)}


def _old(arguments: Namespace) -> nn.Module:
    """The model that OLD holds the weights of, with these weights."""
    given = frame.parse_arguments(arguments.old_arg, "--old-arg")
    if not arguments.old_model:
        given = {**frame.parse_arguments(arguments.arg), **given}
    model = models.build(arguments.old_model or arguments.model, given, "cpu", arguments.seed)
    try:
        initialize(model, _rule(arguments), stats=False, strict="model")
    except TorchinitError as error:
        way_out = "say which it is by --old-model or --old-arg"
        raise UsageError(f"--proof: OLD does not fit its model; {way_out}\n{error}") from error
    return model


# --- transfer --------------------------------------------------------------------------------------------------------

_PARAMETRIZATIONS = ("mup", "completep", "depth_mup", "standard")
_DECAYS = ("product", "sqrt", "constant")


@command(
    "transfer MODEL",
    one_of(
        option("--base", metavar="BASE", help="the small model, as MODEL, or a file that Base.save wrote"),
        option("--base-width", type=int, metavar="N", help="the model itself at this width is the base"),
        required=True,
    ),
    repeated("--base-arg", metavar="KEY=VALUE", help="an argument of BASE's factory"),
    option("--parametrization", choices=_PARAMETRIZATIONS, default="mup", help="default: mup"),
    option("--optimizer", default="adamw", metavar="NAME", help="adam, adamw, lion, sgd, muon (default: adamw)"),
    option("--form", choices=("table8", "folded"), default="table8", help="folded: no multiplier but in the weights"),
    option("--alpha", type=float, default=1.0, help="of completep: branches are times 1 / blocks^alpha (default: 1)"),
    option("--wd", choices=_DECAYS, default="product", help="the rule of weight decay (default: lr times it is held)"),
    option("--zero-readout", action="store_true", help="start the head at zero"),
    option("--lr", type=float, default=1.0, help="the base's learning rate (default: 1, so that factors are printed)"),
    option("--weight-decay", type=float, default=0.0, help="the base's weight decay (default: 0)"),
    option("--eps", type=float, help="the base's eps (default: the optimizer's)"),
    option("--adam-lr", type=float, help="under muon the base's learning rate of AdamW (default: that of --lr)"),
    repeated("--no-decay", metavar="GLOB", help="parameters without weight decay"),
    option("--recipe", metavar="RECIPE", help="what starts the base: a file, or the name of a scheme"),
    "--set",
    repeated("--fixed", metavar="GLOB[:AXIS]", help="what grows, and is not a width"),
    repeated("--kinds", metavar="GLOB=KIND", help="the kind of a parameter that no layer describes: positions=input"),
    repeated("--branches", metavar="GLOB", help="the layers that end residual branches, if their roles do not tell"),
    option("--save-base", metavar="FILE", help="write the base's shapes and start, to be given as BASE"),
    "--device --json",
)
def run_transfer(arguments: Namespace) -> None:
    """Print the table, the multipliers and the groups of the optimizer."""
    model = models.model_of(arguments, arguments.device)
    base = _base(arguments, model)
    if arguments.save_base:
        base.save(arguments.save_base)
    transfer = Transfer(
        model, base, parametrization=arguments.parametrization, form=arguments.form, optimizer=arguments.optimizer,
        alpha=arguments.alpha, wd=arguments.wd, fixed=arguments.fixed, zero_readout=arguments.zero_readout,
        kinds=_kinds(arguments.kinds), branches=arguments.branches,
    )  # fmt: skip
    groups = transfer.groups(
        lr=arguments.lr, weight_decay=arguments.weight_decay, eps=arguments.eps, no_decay=arguments.no_decay,
        adam_lr=arguments.adam_lr,
    )  # fmt: skip
    data = {**transfer.to_dict(), "groups": [asdict(each) for each in groups]}
    frame.show(arguments, f"{transfer}\n\n{_table(groups)}", data)


def _base(arguments: Namespace, model: nn.Module) -> Base:
    is_muon, is_adam = (arguments.optimizer.lower().startswith(names) for names in ("muon", ("muon", "adam")))
    for name, partner, goes in (
        ("set", "--recipe", arguments.recipe), ("base_arg", "--base MODEL", arguments.base),
        ("adam_lr", "--optimizer muon", is_muon), ("eps", "--optimizer adamw, adam or muon", is_adam),
    ):  # fmt: skip
        if getattr(arguments, name) not in ([], None) and not goes:
            raise UsageError(f"--{name.replace('_', '-')} goes with {partner}")
    start = frame.given_recipe(arguments)
    if arguments.base_width is not None:
        return Base.of_width(model, arguments.base_width, start)
    if Path(arguments.base).is_file():
        if arguments.recipe or arguments.base_arg:
            raise UsageError("a saved base has its start with it: --recipe and --base-arg are for a model")
        return Base.load(arguments.base)
    given = frame.parse_arguments(arguments.base_arg, "--base-arg")
    return Base.of(models.build(arguments.base, given, arguments.device), start)


def _kinds(texts: list[str]) -> dict[str, Any]:
    """The kinds of parameters that ``--kinds`` tells, by globs; whether they are some is the transfer's to say."""
    kinds: dict[str, Any] = {}
    for text in texts:
        glob, _, kind = text.rpartition("=")
        if not (glob and kind):
            raise UsageError(f"--kinds takes GLOB=KIND, such as positions=input, but got {text!r}")
        if glob in kinds:
            raise UsageError(f"--kinds {glob} is given twice")
        kinds[glob] = kind
    return kinds


def _table(groups: list[Group]) -> str:
    rows = [
        [
            abbreviate(each.names, 3), each.optimizer, f"{each.lr:.6g}", f"{each.weight_decay:.6g}",
            "-" if each.eps is None else f"{each.eps:.3g}",
        ]
        for each in groups
    ]  # fmt: skip
    return format_table(["group", "optimizer", "lr", "weight decay", "eps"], rows)
