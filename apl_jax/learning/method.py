"""What a training stage minimises: passes of videos through the network, and terms that read them.

A *pass* says which videos go through the network, in which view, with which parameters. A *term* reads passes by name
and returns a scalar; it may own parameters, running state and an optimiser group. A *method* is a mapping of both.
:func:`build_objective` turns a method into two pure functions; nothing else in the package knows what a method is made
of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from apl_jax.declarations import SettingsError
from apl_jax.detectors.base import Detector
from apl_jax.learning.perturb import perturb
from apl_jax.registry import METHODS
from apl_jax.settings import PerturbSettings
from apl_jax.stored_videos import whole
from apl_jax.structs import Array, Batch, DataFacts, PyTree

# Videos that a pass may ask for.
LABELLED = "labelled"  # with the annotations that people made
PSEUDO_LABELLED = "pseudo_labelled"  # unlabelled videos with the pseudo labels of an earlier stage
UNLABELLED = "unlabelled"  # the same videos without any
TRAINING = "training"  # labelled and unlabelled videos together, all without annotations
VIDEOS = (LABELLED, PSEUDO_LABELLED, UNLABELLED, TRAINING)
# Constants that a term may ask for.
INSTANCES = "instances"  # learning.icd.InstanceBank of all labelled instances

DETECTOR = "detector"  # owner of the network's parameters

Metrics = dict[str, Array]
View = Callable[[Array, Batch], Batch]


class Pass(NamedTuple):
    """One way of videos through the network. One that no term needs is a view for others, and takes no part."""

    videos: str  # one of VIDEOS
    view: View | None = None  # view(key, batch); None: the stage's random view
    same_view_as: str = ""  # name of an earlier pass whose view this one sees; ``view``, if any, is made of that
    ema: bool = False  # with the averaged parameters, and without gradient
    dropout: bool = True


class PassResult(NamedTuple):
    """What a pass saw and gave."""

    view: Batch
    outputs: Any  # None of a pass that no term needs


class TermInputs(NamedTuple):
    """What a term may read in one step."""

    passes: Mapping[str, PassResult]
    earlier: Mapping[str, Any]  # by name of an earlier term, what it gave
    params: Mapping[str, PyTree]  # by owner
    constants: Mapping[str, PyTree]  # by name, those of ``needs``
    state: PyTree  # the term's own
    key: Array


class TermValue(NamedTuple):
    """What a term returns in one step."""

    loss: Array  # scalar, before ``Term.weight``
    metrics: Metrics
    state: PyTree = ()
    gives: Any = None  # for later terms


class GroupSettings(NamedTuple):
    """How a term's own parameters are optimised: AdamW at a constant learning rate, clipped by their own norm."""

    learning_rate: float
    weight_decay: float


def no_parameters(key: Array) -> tuple[dict[str, PyTree], PyTree]:
    """``Term.init`` of a term without parameters and state."""
    del key
    return {}, ()


class Term(NamedTuple):
    """One summand of an objective.

    ``loss(inputs) -> TermValue``, differentiable for ``inputs.params`` · ``needs``: names of passes, earlier terms and
    constants that it reads · ``init(key) -> (params by owner, state)`` · ``weight`` · ``group``: the optimiser of the
    owners that it brings; None: that of the detector.
    """

    loss: Callable[[TermInputs], TermValue]
    needs: tuple[str, ...]
    init: Callable[[Array], tuple[dict[str, PyTree], PyTree]] = no_parameters
    weight: float = 1.0
    group: GroupSettings | None = None
    sees: tuple[str, ...] = ()  # passes of which it reads the view alone


class Method(NamedTuple):
    """A whole objective.

    ``teacher``: a network is trained on the labelled videos first, and this stage starts from its parameters. Methods
    with a pass over pseudo-labelled videos always have one, for it makes the labels.
    ``evidence``: settings of cross-fitting, by which the choices around this stage are made; None: as configured.
    """

    passes: Mapping[str, Pass]
    terms: Mapping[str, Term]
    teacher: bool = True
    evidence: Any = None

    @property
    def videos(self) -> frozenset[str]:
        """Which of VIDEOS the passes ask for."""
        return frozenset(p.videos for p in self.passes.values())

    @property
    def constants(self) -> frozenset[str]:
        """Which constants the terms ask for."""
        return frozenset(name for term in self.terms.values() for name in term.needs if name == INSTANCES)


class MethodContext(NamedTuple):
    """What a method is built from, besides its own settings."""

    detector: Detector
    view: View  # the stage's random view
    facts: DataFacts


def register_method(name: str, settings: type, build: Callable[[Any, MethodContext], Method]) -> None:
    """Makes a method known by name, for ``learning.pretext``, ``learning.teacher`` and ``learning.method``.

    Args:
        name: what ``name`` in a configuration may say.
        settings: a frozen dataclass on :class:`~apl_jax.declarations.Checked` with a default for every field.
        build: ``build(settings, context) -> Method``.
    """
    METHODS.register(name, settings, build)


def random_view(perturbation: PerturbSettings, facts: DataFacts) -> View:
    """The random view of a stage: truncation and noise (learning/perturb.py)."""
    return lambda key, batch: perturb(key, batch, perturbation, facts.max_steps, facts.edge_t)


class Objective(NamedTuple):
    """A method as pure functions.

    ``init(key) -> (params by owner, state by term)`` · ``loss(params, ema_params, state, batches, key) -> (scalar,
    (state, metrics))``, to be differentiated for ``params`` · ``groups``: optimiser group by owner, None being the
    detector's.
    """

    init: Callable[[Array], tuple[dict[str, PyTree], dict[str, PyTree]]]
    loss: Callable[[PyTree, PyTree, PyTree, dict, Array], tuple[Array, tuple[PyTree, Metrics]]]
    groups: Mapping[str, GroupSettings | None]


def build_objective(method: Method, context: MethodContext) -> Objective:
    """The pure functions of a method. Raises :class:`~apl_jax.declarations.SettingsError` for a term that needs what
    nobody gives, and for two terms that own parameters of one name."""
    check_needs(method)
    owners = owners_of(method)

    def init(key: Array) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        detector_key, term_key = jax.random.split(key)
        params = {DETECTOR: context.detector.init(detector_key)[0]}
        state = {}
        for i, (name, term) in enumerate(method.terms.items()):
            own, state[name] = term.init(jax.random.fold_in(term_key, i))
            params |= own
        return params, state

    def loss(params: PyTree, ema_params: PyTree, state: PyTree, batches: dict, key: Array):
        pass_key, term_key = jax.random.split(key)
        passes = run_passes(method, context, params, ema_params, batches, pass_key)
        total, metrics, earlier, after = jnp.zeros(()), {}, {}, {}
        for i, (name, term) in enumerate(method.terms.items()):
            constants = {need: batches[need] for need in term.needs if need == INSTANCES}
            inputs = TermInputs(passes, earlier, params, constants, state[name], jax.random.fold_in(term_key, i))
            value = term.loss(inputs)
            total += term.weight * value.loss
            metrics |= value.metrics
            earlier[name], after[name] = value.gives, value.state
        return total, (after, metrics)

    return Objective(init, loss, {DETECTOR: None, **owners})


def owners_of(method: Method) -> dict[str, GroupSettings | None]:
    """The owners of parameters that terms bring, with their optimiser group."""
    owners: dict[str, GroupSettings | None] = {}
    for name, term in method.terms.items():
        own, _ = jax.eval_shape(term.init, jax.random.key(0))
        for owner in own:
            if owner in owners or owner == DETECTOR:
                raise SettingsError(
                    f"term {name!r}: found parameters called {owner!r} a second time, expected another name"
                )
            owners[owner] = term.group
    return owners


def check_needs(method: Method) -> None:
    """Refuses a pass over unknown videos, and a term that needs what no pass and no earlier term gives."""
    earlier: list[str] = []
    for name, p in method.passes.items():
        if p.videos not in VIDEOS:
            raise SettingsError(f"pass {name!r}: found videos {p.videos!r}, expected one of {', '.join(VIDEOS)}")
        if p.same_view_as and p.same_view_as not in earlier:
            found = f"found same_view_as {p.same_view_as!r}"
            raise SettingsError(f"pass {name!r}: {found}, expected an earlier pass ({', '.join(earlier) or 'none'})")
        earlier.append(name)
    known = {*method.passes, INSTANCES}
    for name, term in method.terms.items():
        missing = [need for need in (*term.needs, *term.sees) if need not in known]
        if missing:
            raise SettingsError(f"term {name!r}: found needs {missing}, expected some of {', '.join(sorted(known))}")
        known.add(name)


def run_passes(
    method: Method, context: MethodContext, params: PyTree, ema_params: PyTree, batches: Mapping[str, Batch], key: Array
) -> dict[str, PassResult]:
    """All passes of one step. Those with the same parameters and of equal length go through the network together, those
    that no term needs do not."""
    needed = {need for term in method.terms.values() for need in term.needs}
    views: dict[str, Batch] = {}
    groups: dict[tuple[bool, bool, int], list[str]] = {}
    for i, (name, p) in enumerate(method.passes.items()):
        make = p.view or ((lambda key, batch: batch) if p.same_view_as else context.view)
        source = views[p.same_view_as] if p.same_view_as else batches[p.videos]
        source = whole(source) if p.view else source  # the stage's random view alone reads no more than it cuts out
        views[name] = make(jax.random.fold_in(key, i), source)
        if name in needed:
            groups.setdefault((p.ema, p.dropout, views[name].mask.shape[1]), []).append(name)
    results = {name: PassResult(view, None) for name, view in views.items()}
    for i, ((ema, dropout, _), names) in enumerate(groups.items()):
        chosen = jax.lax.stop_gradient(ema_params[DETECTOR]) if ema else params[DETECTOR]
        dropout_key = jax.random.fold_in(key, len(method.passes) + i) if dropout else None
        joined = join_batches([views[name] for name in names])
        outputs = context.detector.apply(chosen, joined, dropout_key)
        outputs = jax.lax.stop_gradient(outputs) if ema else outputs
        parts = split_batch(outputs, [views[name].mask.shape[0] for name in names])
        results |= {name: PassResult(views[name], part) for name, part in zip(names, parts, strict=True)}
    return {name: results[name] for name in method.passes}


def join_batches(batches: list[Batch]) -> Batch:
    """Batches of equal T as one; instances are padded to the largest N."""
    if len(batches) == 1:
        return batches[0]
    most = max(batch.targets.mask.shape[1] for batch in batches)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, most - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
    padded = [dataclasses.replace(batch, targets=jax.tree.map(pad, batch.targets)) for batch in batches]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *padded)


def split_batch(tree: PyTree, sizes: list[int]) -> list[PyTree]:
    """A batch, or outputs, of several batches' videos as one for each: undoes :func:`join_batches`."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    cut = lambda first, last: jax.tree.map(lambda x: x[first:last], tree)
    return [cut(end - size, end) for end, size in zip(ends, sizes, strict=True)]
