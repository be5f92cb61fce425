"""Initializers as MMEngine has them: objects that are called on a module and fill the layers that they name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from string import Formatter
from typing import Any, ClassVar, Final

from torch import nn

from torchinit.checkpoints import Pretrained
from torchinit.errors import CheckpointError
from torchinit.initializers.elementwise import Constant, Initializer, Normal, Uniform
from torchinit.mmengine.biases import BIAS_WORDS, Bias, bias_of, by_site
from torchinit.mmengine.checkpoints import load_pretrained
from torchinit.mmengine.extensions import Extension
from torchinit.mmengine.functional import formula, kaiming, trunc_normal, xavier
from torchinit.mmengine.log import log
from torchinit.mmengine.registry import WEIGHT_INITIALIZERS, InitCfgAssertionError, InitCfgTypeError
from torchinit.mmengine.session import MARK, Session, current
from torchinit.rules.rule import SCHEMA, Rule
from torchinit.rules.selectors import Name
from torchinit.serialization.reading import Reader

_SOURCE_WORDS: Final = frozenset({"layers", "adapt", "rename", "part"})
"""What an entry may say of a checkpoint beyond MMEngine."""


class BaseInit:
    """The base of initializers: the value of biases, and the layers that they are for.

    ``bias_prob`` gives the bias with which a sigmoid starts at that probability, and wins over ``bias``.
    ``layer`` is the name of a class, or of a direct base, or a list of them. Raises TypeError for
    arguments of other types, ValueError for a probability outside (0, 1).

    >>> BaseInit(layer="Conv2d").layer
    ['Conv2d']
    """

    def __init__(
        self, *, bias: float = 0, bias_prob: float | None = None, layer: str | list[str] | None = None
    ) -> None:
        self.wholemodule = False
        self.bias: Bias = bias_of(bias, bias_prob)
        if layer is not None and not isinstance(layer, (str, list)):
            raise InitCfgTypeError(f"layer must be a str or a list of str, but got a {type(layer)}")
        self.layer: list[str] = [layer] if isinstance(layer, str) else layer or []

    def _get_init_info(self) -> str:
        return f"{type(self).__name__}, bias={self.bias}"


class FormulaInit(BaseInit):
    """An initializer whose weights a formula gives; calling it writes, once everything has been checked.

    A class names its ``_formula`` and, in ``_shown``, the arguments of that as the log shows them, each the name of an
    attribute. ``words`` are those of :class:`BaseInit`, :func:`bias_of` and :class:`Extension`.
    """

    takes_also: tuple[type, ...] = (Extension,)
    _formula: ClassVar[Callable[..., Initializer]]
    _shown: ClassVar[str]

    def __init__(self, **words: Any) -> None:
        self.extension: Extension = Extension.taken_from(words, self._kind)
        self.says_bias: bool = not BIAS_WORDS.isdisjoint(words)
        super().__init__(**words)
        if self.extension.param and self.says_bias:
            raise InitCfgTypeError("param names what is written; a bias needs an entry of its own")

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def formula(self) -> Initializer:
        """The formula of the weights."""
        names = [name for _, name, _, _ in Formatter().parse(self._shown) if name]
        return self._formula(**{name: getattr(self, name) for name in names})

    def rules(self, origin: str = "") -> tuple[Rule, ...]:
        """The rules that this is: one for weights, and one for biases unless they are left alone."""
        more = self.extension
        layers = [] if self.wholemodule else self._bare_names()
        by_name = more.by_name(layers)
        where, init = more.where(layers, whole=self.wholemodule), more.shaped(self.formula(), self._kind)
        label = more.label or self._get_init_info() + (f", fans={more.fans}" if more.fans != "torch" else "")
        rule = partial(Rule, label=label, padding=more.padding, buffers=more.buffers or not by_name, origin=origin)
        optional = more.optional or not (self.wholemodule or layers or more.selects)
        pairs = by_site(where, init, self.bias, by_name=by_name, says_bias=self.says_bias)
        return tuple(rule(*pair, optional=optional or number > 0) for number, pair in enumerate(pairs))

    @property
    def through(self) -> bool:
        """Whether a tensor that its module computes gets the values; MMEngine writes to what is then lost."""
        return self.extension.by_name(self.layer)

    def _get_init_info(self) -> str:
        return f"{type(self).__name__}: {self._shown.format(**vars(self))}, bias={self.bias}"

    def _bare_names(self) -> list[str]:
        """The bare names among the layers; MMEngine compares names, and takes no notice of anything else."""
        bare = [layer for layer in self.layer if isinstance(layer, str) and layer and "." not in layer]
        for layer in self.layer:
            if layer not in bare:
                name = getattr(layer, "__name__", str(layer).rpartition(".")[2])
                log(logging.WARNING, "layer %r matches nothing: give the bare name of a class, %r", layer, name)
        return bare

    def __call__(self, module: nn.Module) -> None:
        """Fill the module, and all below it, where the class is one of ``layer``."""
        session = current(module) or Session(module)
        session.prepare(module, self.rules(type(self).__name__), through=self.through, records=False)()


class CoreInit(FormulaInit):
    """An initializer that MMEngine does not have, for the weights of layers as MMEngine finds them."""

    through = True

    def __init__(self, init: Initializer, **words: Any) -> None:
        self.init = init
        super().__init__(**words)

    @property
    def _kind(self) -> str:
        return type(self.init).__name__

    def formula(self) -> Initializer:
        return self.init

    def _get_init_info(self) -> str:
        return f"{self.init}, bias={self.bias}"


@WEIGHT_INITIALIZERS.register_module(name="Constant")
class ConstantInit(FormulaInit):
    """Weights of one value.

    >>> layer = nn.Linear(2, 2)
    >>> ConstantInit(0.5, bias=1, layer="Linear")(layer)
    >>> layer.weight[0, 0].item(), layer.bias[0].item()
    (0.5, 1.0)
    """

    _formula, _shown = staticmethod(partial(formula, Constant)), "val={val}"

    def __init__(self, val: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.val = val


@WEIGHT_INITIALIZERS.register_module(name="Xavier")
class XavierInit(FormulaInit):
    """Weights of variance gain² · 2 / (fan_in + fan_out), normal or uniform.

    >>> XavierInit(gain=2, distribution="uniform", layer="Linear")(nn.Linear(2, 2))
    """

    _formula, _shown = staticmethod(xavier), "gain={gain}, distribution={distribution}"

    def __init__(self, gain: float = 1, distribution: str = "normal", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gain, self.distribution = gain, distribution


@WEIGHT_INITIALIZERS.register_module(name="Normal")
class NormalInit(FormulaInit):
    """Weights of N(mean, std²).

    >>> NormalInit(std=0.01, layer=["Conv2d", "Linear"])(nn.Linear(2, 2))
    """

    _formula, _shown = staticmethod(partial(formula, Normal)), "mean={mean}, std={std}"

    def __init__(self, mean: float = 0, std: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean, self.std = mean, std


@WEIGHT_INITIALIZERS.register_module(name="TruncNormal")
class TruncNormalInit(FormulaInit):
    """Weights of N(mean, std²) cut to [a, b], which are values, not multiples of ``std``.

    >>> TruncNormalInit(std=0.02, layer="Linear")(nn.Linear(2, 2))
    """

    _formula, _shown = staticmethod(trunc_normal), "a={a}, b={b}, mean={mean}, std={std}"

    def __init__(self, mean: float = 0, std: float = 1, a: float = -2, b: float = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean, self.std, self.a, self.b = mean, std, a, b


@WEIGHT_INITIALIZERS.register_module(name="Uniform")
class UniformInit(FormulaInit):
    """Weights of U(a, b).

    >>> UniformInit(a=-1, b=1, layer="Linear")(nn.Linear(2, 2))
    """

    _formula, _shown = staticmethod(partial(formula, Uniform)), "a={a}, b={b}"

    def __init__(self, a: float = 0, b: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.a, self.b = a, b


@WEIGHT_INITIALIZERS.register_module(name="Kaiming")
class KaimingInit(FormulaInit):
    """Weights of variance gain² / fan. The defaults are MMEngine's: fan_out, relu, normal.

    >>> KaimingInit(layer="Conv2d")(nn.Conv2d(3, 8, 3))
    """

    _formula = staticmethod(kaiming)
    _shown = "a={a}, mode={mode}, nonlinearity={nonlinearity}, distribution ={distribution}"  # the blank is MMEngine's

    def __init__(
        self,
        a: float = 0,
        mode: str = "fan_out",
        nonlinearity: str = "relu",
        distribution: str = "normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.a, self.mode, self.nonlinearity, self.distribution = a, mode, nonlinearity, distribution


@WEIGHT_INITIALIZERS.register_module(name="Caffe2Xavier")
class Caffe2XavierInit(KaimingInit):
    """Caffe2's XavierFill: uniform weights of variance 1 / fan_in.

    >>> Caffe2XavierInit(layer="Linear")(nn.Linear(2, 2))
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(a=1, mode="fan_in", nonlinearity="leaky_relu", distribution="uniform", **kwargs)


@WEIGHT_INITIALIZERS.register_module(name="Pretrained")
class PretrainedInit:
    """Values from a checkpoint: a path, a URL, or what is registered with :class:`CheckpointLoader`.

    ``prefix`` takes the part of the checkpoint below that name. Files are read without running code in them. Raises
    FileNotFoundError, CheckpointError for a file that is not a checkpoint, AssertionError where nothing lies below the
    prefix; warns where nothing fits. ``layers``, ``adapt``, ``rename`` and ``part`` are those of
    :class:`torchinit.Pretrained`, by which such an entry is planned; what an adapter cannot make is a CheckpointError.

    >>> PretrainedInit("resnet50.pth", prefix="backbone.").checkpoint
    'resnet50.pth'
    """

    takes_also = (Extension,)
    through = True

    def __init__(
        self, checkpoint: str | os.PathLike[str], prefix: str | None = None, map_location: Any = "cpu", **words: Any
    ) -> None:
        self.extension = Extension.taken_from(words, type(self).__name__)
        self.source_words = {word: words.pop(word) for word in _SOURCE_WORDS & words.keys()}
        if words:
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {min(words)!r}")
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise InitCfgTypeError(f"checkpoint must be a path or an address, but got {checkpoint!r}")
        if prefix is not None and not isinstance(prefix, str):
            raise InitCfgTypeError(f"prefix must be text such as 'backbone.', but got {prefix!r}")
        for word in ("fans", "subclasses", "blocks", "batch_axes", "padding"):
            if getattr(self.extension, word) != getattr(Extension(), word):
                raise InitCfgTypeError(f"{word} means nothing beside Pretrained, which loads a tensor as it is")
        self.checkpoint, self.prefix, self.map_location = checkpoint, prefix, map_location
        self._source()

    def _source(self) -> Pretrained:
        """The initializer of a recipe that loads as MMEngine does: what is there and fits, whatever it holds.

        Later entries may write over it. Raises ConfigError for words that cannot be read.
        """
        as_mmengine: dict[str, Any] = {"expect_missing": "**", "finite": False, "lock": False}
        reader = Reader(SCHEMA.vocabularies, type(self).__name__)
        given = {"checkpoint": os.fspath(self.checkpoint), "prefix": self.prefix, **self.source_words}
        source: Pretrained = reader.record(Pretrained, given, "init_cfg")
        reader.finish()
        on_shape: dict[str, Any] = {"**": "skip", **dict.fromkeys(source.adapt, "error")}
        return replace(source, map_location=self.map_location, on_shape=on_shape, **as_mmengine)

    def rules(self, origin: str = "") -> tuple[Rule, ...]:
        """The rule of a recipe for an entry that says which sites are loaded; none for any other."""
        where = self.extension.where(whole=True) or (Name("**") if self.source_words else None)
        if where is None:
            return ()
        return (Rule(where, self._source(), self._get_init_info(), self.extension.optional, origin=origin),)

    def __call__(self, module: nn.Module) -> None:
        """Load what fits into the module."""
        self.load(module, current(module))

    def load(self, module: nn.Module, session: Session | None) -> None:
        """Load what fits, within a session if there is one; CheckpointError where that is strict and nothing does."""
        if rules := self.rules(type(self).__name__):
            session = session or Session(module)
            session.prepare(module, rules, through=True)()
            return
        with nullcontext() if session is None else session.foreign(module, self._get_init_info()):
            account = load_pretrained(module, self.checkpoint, self.prefix, self.map_location)
        if session is not None:
            session.loads.append(account)
            if session.strict and account.wanted and not account.found and not self.extension.optional:
                raise CheckpointError(f"{account.source}: 0 of {account.wanted} tensors match the model")

    def _get_init_info(self) -> str:
        return f"{self.extension.label or type(self).__name__}: load from {self.checkpoint}"


def update_init_info(module: nn.Module, init_info: str) -> None:
    """Tell who wrote the parameters of a module that have been written since they were last told of.

    An initializer of your own calls it where its module has ``_params_init_info``, that is, while
    ``init_weights`` runs. Raises AssertionError for a module outside of that, and for one with a new parameter.

    >>> update_init_info(nn.Linear(1, 1), "by nobody")
    Traceback (most recent call last):
    AssertionError: Can not find `_params_init_info` in Linear(in_features=1, out_features=1, bias=True)
    """
    session = current(module)
    if session is not None:
        session.provenance.check_parameters(module)
        session.provenance.claim_written(module, init_info)
        return
    if MARK not in vars(module):
        raise AssertionError(f"Can not find `_params_init_info` in {module}")
    theirs = vars(module)[MARK]  # of a tree that MMEngine initializes, whose record goes by means
    for name, parameter in module.named_parameters():
        if parameter not in theirs:
            raise InitCfgAssertionError(f"Find a new :obj:`Parameter` named `{name}`: parameters must not be added")
        mean = parameter.data.mean().cpu()
        if theirs[parameter]["tmp_mean_value"] != mean:
            theirs[parameter].update(init_info=init_info, tmp_mean_value=mean)
