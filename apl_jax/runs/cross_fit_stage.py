"""Cross-fitting: what networks trained on some labelled recordings find in those that they have not seen.

The labelled recordings are divided into folds (by subject, where known); one network for each fold is trained on all
others, all in one program (training/fold_training.py), and predicts its own. From these honest detections follows what
no rule can know: how precise which confidence is, how many steps are enough, whether a pretext helps, whether a student
is better than its teacher. No annotation of an unlabelled or evaluated recording is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from apl_jax.data.annotations import read_annotations
from apl_jax.data.batching import build_targets
from apl_jax.data.files import write_bytes
from apl_jax.data.folds import make_folds
from apl_jax.data.tensors import read_tensors
from apl_jax.declarations import Chain, Choice, SettingsError
from apl_jax.detectors import build_detector
from apl_jax.devices import place, replicated, to_host
from apl_jax.evaluation.average_precision import Instances
from apl_jax.evaluation.detections import predict_batch, to_instances
from apl_jax.evaluation.label_space import frame_truth
from apl_jax.evaluation.scoring import score
from apl_jax.feeds.resident import Feed
from apl_jax.inference.model import OWNER
from apl_jax.learning.class_division import DivisionSettings, rankable_probs
from apl_jax.learning.icd import DISCRIMINATOR, IcdSettings, InstanceBank, build_icd, class_members
from apl_jax.learning.method import INSTANCES, LABELLED, PSEUDO_LABELLED, Method, build_objective
from apl_jax.learning.selection import UNKNOWN_SIMILARITY, Known
from apl_jax.runs.artefacts import CHECKPOINTS
from apl_jax.runs.context import StageInputs
from apl_jax.runs.labelling_stage import LabellingPart, as_annotations, build_selection, select_from
from apl_jax.runs.training_stage import build_method, most_instances, stage_key
from apl_jax.settings import LabelSpaceSettings, StageSettings
from apl_jax.structs import Batch, DataFacts, Detections, PyTree, leaves_by_name
from apl_jax.training.checkpoint import Checkpoints
from apl_jax.training.fold_training import FoldTable, fold_feed
from apl_jax.training.loop import Plan, fit
from apl_jax.training.optimizer import build_optimizer
from apl_jax.training.side_by_side import at_once, build_steps, initial_states
from apl_jax.training.step import build_dispatch
from apl_jax.training.writers import open_writers


@dataclass(frozen=True)
class CrossFitPart:
    """What a cross-fitting stage is handed."""

    name: str
    seed: int
    detector: Choice
    method: Choice
    stage: StageSettings  # its steps are those after which training ends
    milestones: tuple[int, ...]  # rising steps after which held-out recordings are predicted; the last one is the end
    folds: int  # at most
    tiou: tuple[float, ...]
    steps_per_dispatch: int
    start: str = ""  # stage whose averaged parameters all networks begin with
    networks: str = ""  # cross-fitting stage, and the milestone, whose networks these go on from: stage/steps
    labels: str = ""  # stage that left the pseudo labels of each network
    distributions: DivisionSettings | None = None  # class distributions of held-out snippets are kept too, made so


@dataclass(frozen=True)
class CrossFitLabelPart:
    """What a stage is handed that selects the pseudo labels of each network."""

    name: str
    detector: Choice
    selection: Chain
    candidates: str  # ignore | background: what unselected candidates are in training
    folds: int
    networks: str  # cross-fitting stage, and the milestone, whose networks label: stage/steps


def folds_of(inputs: StageInputs, most: int) -> np.ndarray:
    """The fold ``[V]`` of each labelled recording."""
    return make_folds(inputs.table("labelled").records, most, len(inputs.classes))


def why_no_evidence(inputs: StageInputs) -> str:
    """Why no labelled recording can be held out, in words; "" where some can. Nothing is trained then."""
    if len(inputs.table("labelled").records) < 2:
        return "there is one labelled recording, and none that could be held out to judge by"
    if inputs.streamed:
        return "features are streamed, for they do not fit the devices, where the networks of all folds are trained"
    return ""


def cross_fit(part: CrossFitPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """Trains a network for each fold and keeps, at each milestone, what they find in the recordings held out; nothing
    where none can be (:func:`why_no_evidence`)."""
    if why_no_evidence(inputs):
        return {"folds": 0, "held_out_map": {}}
    folds = folds_of(inputs, part.folds)
    count, key = int(folds.max()) + 1, stage_key(inputs.mesh, part.seed, part.name)
    method, context = build_method(part.method, part.detector, part.stage, inputs.facts)
    objective = build_objective(method, context)
    optimizer = build_optimizer(part.stage.optimizer, objective.groups, part.stage.steps)
    begin = jax.jit(  # what tells the networks apart is what they see, not how they begin
        lambda k, old: initial_states(jnp.stack([k] * count), objective, optimizer, old),
        out_shardings=replicated(inputs.mesh),
    )
    start = part.networks or part.start
    inherited = leaves_by_name(inputs.parameters(start)) if start else {}
    shapes = jax.eval_shape(begin, jax.random.key(0), inherited)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(inputs.mesh)), shapes)
    store = Checkpoints(folder / CHECKPOINTS, inputs.runtime.checkpoint_every)
    state = store.resume(like) or begin(key, inherited)
    feed = _feed(part, inputs, method, folds)
    step = build_steps(objective, optimizer, part.stage.optimizer, at_once(inputs.mesh), shared=False)
    compiled: dict[int, Any] = {}

    def dispatch(steps: int) -> Any:
        if steps not in compiled:
            compiled[steps] = build_dispatch(step, feed, inputs.mesh, steps)
        return compiled[steps]

    done = int(to_host(state.step))
    with contextlib.closing(open_writers(folder, done, inputs.first_process)) as writer:
        for milestone in part.milestones:
            if done > milestone:  # resumed beyond it: what was found then is in its folder
                continue
            plan = Plan(part.name, milestone, part.steps_per_dispatch, inputs.runtime)
            state = fit(state, dispatch, key, feed, plan, store, writer)
            _keep(part, inputs, folder / str(milestone), state.ema_params, folds)
    store.close()
    records, scores = inputs.table("labelled").records, {}
    for milestone in part.milestones:
        instances, _ = read_held_out(folder / str(milestone))
        scores[str(milestone)] = score(records, instances, inputs.classes, part.tiou, ())["average_map"]
    return {"folds": count, "held_out_map": scores}


def _keep(part: CrossFitPart, inputs: StageInputs, folder: Path, params: PyTree, folds: np.ndarray) -> None:
    """Writes the networks, and what they find in the recordings held out."""
    inputs.write_parameters(folder, params)
    found = _held_out(part.detector, inputs, params, folds)
    distributions = _distributions(part, inputs, params, folds, part.distributions) if part.distributions else None
    if inputs.first_process:
        write_held_out(folder, *found)
        if distributions is not None:
            write_distributions(folder, *distributions)


def _feed(part: CrossFitPart, inputs: StageInputs, method: Method, folds: np.ndarray) -> Feed:
    """The batches of all networks."""
    whole = replicated(inputs.mesh)
    everywhere = lambda x: x if getattr(x, "sharding", None) == whole else place(to_host(x), whole)
    seen = folds != np.arange(int(folds.max()) + 1)[:, None]  # [K, V]
    tables: dict[str, FoldTable] = {}
    for role in sorted(method.videos):
        name = {PSEUDO_LABELLED: "unlabelled"}.get(role, role)
        videos = inputs.resident(name)
        if role == LABELLED:
            tables[role] = FoldTable(videos, seen, part.stage.labelled_batch)
            continue
        every = np.ones((len(seen), len(inputs.table(name).ids)), bool)
        targets = _pseudo_targets(part, inputs, len(seen)) if role == PSEUDO_LABELLED else None
        tables[role] = FoldTable(videos, every, part.stage.unlabelled_batch, targets)
    bank = inputs.bank if method.constants else None
    feed = fold_feed(tables, _bank_of_fold, bank, seen)
    return feed._replace(arrays=jax.tree.map(everywhere, feed.arrays))


def _pseudo_targets(part: CrossFitPart, inputs: StageInputs, count: int) -> PyTree:
    """The pseudo labels of each network ``[K, V, N, ...]``."""
    table, tables = inputs.table("unlabelled"), []
    for k in range(count):
        found = read_annotations(inputs.folder(part.labels) / f"fold_{k}.json", inputs.classes).videos
        tables.append(dataclasses.replace(table, records=tuple(found[video] for video in table.ids)))
    most = max(map(most_instances, tables))
    each = [build_targets(one.records, one.grids, most) for one in tables]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def _bank_of_fold(bank: InstanceBank | None, seen: Any) -> dict[str, PyTree]:
    """The labelled instances of the recordings that a network has seen."""
    if bank is None:
        return {}
    rows_each = len(bank.mask) // len(seen)  # a recording's rows follow one another; rows of no recording come last
    mask = jnp.resize(jnp.repeat(seen, rows_each), bank.mask.shape) & bank.mask
    return {INSTANCES: dataclasses.replace(bank, mask=mask)}


def known_of_folds(inputs: StageInputs, params: PyTree, folds: np.ndarray) -> list[Known]:
    """What each network knows: its parameters, and the labelled instances of the recordings that it has seen."""
    count, rows_each = int(folds.max()) + 1, inputs.resident("labelled").targets.mask.shape[1]
    bank, known = to_host(inputs.bank), []
    members = []
    for k in range(count):
        mask = np.zeros_like(bank.mask)
        mask[: len(folds) * rows_each] = np.repeat(folds != k, rows_each)
        own = dataclasses.replace(bank, mask=bank.mask & mask)
        members.append(to_host(class_members(own, len(inputs.classes))))
        known.append(own)
    most = max(m.rows.shape[1] for m in members)  # one shape for all folds, so that one program serves them
    pad = lambda x: np.pad(x, ((0, 0), (0, most - x.shape[1])))
    everywhere = lambda tree: place(tree, replicated(inputs.mesh))
    return [
        Known(jax.tree.map(lambda x, k=k: x[k], params), everywhere(own), everywhere(jax.tree.map(pad, member)))
        for k, (own, member) in enumerate(zip(known, members, strict=True))
    ]


def _held_out(detector: Choice, inputs: StageInputs, params: PyTree, folds: np.ndarray) -> tuple[Instances, np.ndarray]:
    """What every network finds in its own fold, and how similar ICD thinks it to labelled instances of its class."""
    built, table = build_detector(detector, inputs.facts), inputs.table("labelled")
    similarity_of = build_icd(IcdSettings(), inputs.facts).observe

    def predict(known: Known, videos: Batch) -> tuple[Detections, Any]:
        found = predict_batch(built, known.params["detector"], videos)
        if DISCRIMINATOR not in known.params:
            return found, jnp.full_like(found.confidence, UNKNOWN_SIMILARITY)
        return found, similarity_of(known, videos, found)

    each = [to_host(inputs.map_videos("labelled", predict, known)) for known in known_of_folds(inputs, params, folds)]
    of_own_fold = lambda *leaves: np.stack([leaves[k][v] for v, k in enumerate(folds)])
    found, similarity = jax.tree.map(of_own_fold, *each)
    return to_instances(found, table.grids, similarity, [record.duration_s for record in table.records])


def _distributions(
    part: CrossFitPart, inputs: StageInputs, params: PyTree, folds: np.ndarray, settings: DivisionSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The class distributions ``[M, C + 1]`` that non-target learning divides, of held-out snippets of a known class
    ``[M]``. Where background is no class of the head, of points of an action that are not sure of background."""
    built, table = build_detector(part.detector, inputs.facts), inputs.table("labelled")
    background, least = built.facts.background_class, LabelSpaceSettings().foreground_score

    def distribute(params: PyTree, videos: Batch) -> tuple[Any, Any, Any]:
        class_probs = built.apply(params, videos, None).distribution()
        sure = background | (class_probs.log_in[..., :-1].max(-1) > jnp.log(least))
        ranked = rankable_probs(class_probs.probability, background, settings)
        return ranked, class_probs.time_t, class_probs.mask & sure

    count = int(folds.max()) + 1
    owned = [jax.tree.map(lambda x, k=k: x[k], params[OWNER]) for k in range(count)]
    each = [to_host(inputs.map_videos("labelled", distribute, own)) for own in owned]
    of_own_fold = lambda *leaves: np.stack([leaves[k][v] for v, k in enumerate(folds)])
    probability, time_t, mask = jax.tree.map(of_own_fold, *each)
    classes = len(inputs.classes)
    rows = zip(table.records, table.grids, time_t, strict=True)
    truth = np.stack([frame_truth(grid.to_s(times), record, classes) for record, grid, times in rows])
    known = mask & (truth >= 0) & (background | (truth < classes))
    return probability[known], truth[known]


_HELD_OUT, _DISTRIBUTIONS = "held_out.safetensors", "distributions.safetensors"
_REMEDY = "remove the folder of that stage, and run the same command again"


def write_held_out(folder: Path, found: Instances, similarity: np.ndarray) -> None:
    """Keeps detections on held-out recordings; the video row is the place in the labelled list."""
    columns = {name: np.ascontiguousarray(getattr(found, name)) for name in ("video", "label", "segments_s", "score")}
    write_bytes(folder / _HELD_OUT, save({**columns, "similarity": np.ascontiguousarray(similarity)}))


def read_held_out(folder: Path) -> tuple[Instances, np.ndarray]:
    """What :func:`write_held_out` kept."""
    columns = read_tensors(folder / _HELD_OUT, _REMEDY)
    return Instances(**{n: columns[n] for n in ("video", "label", "segments_s", "score")}), columns["similarity"]


def write_distributions(folder: Path, probability: np.ndarray, truth: np.ndarray) -> None:
    """Keeps class distributions of held-out snippets and their classes."""
    columns = {"probability": np.ascontiguousarray(probability), "truth": np.ascontiguousarray(truth)}
    write_bytes(folder / _DISTRIBUTIONS, save(columns))


def read_distributions(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`write_distributions` kept."""
    columns = read_tensors(folder / _DISTRIBUTIONS, _REMEDY)
    return columns["probability"], columns["truth"]


def label_for_folds(part: CrossFitLabelPart, inputs: StageInputs, folder: Path) -> dict[str, Any]:
    """The pseudo labels that each network would learn from, as annotations: ``fold_0.json`` and so on."""
    if why_no_evidence(inputs):
        return {"labels": []}
    folds = folds_of(inputs, part.folds)
    detector, link = build_detector(part.detector, inputs.facts), build_selection(part.selection, inputs.facts)
    as_written = LabellingPart(part.name, part.detector, part.selection, part.candidates, part.networks)
    chosen = []
    select = select_from(detector, link, inputs)
    for k, known in enumerate(known_of_folds(inputs, inputs.parameters(part.networks), folds)):
        _, labels = select(known, link.init())
        inputs.write(folder / f"fold_{k}.json", as_annotations(as_written, inputs, labels))
        chosen.append(int((np.asarray(labels.weight) > 0).sum()))
    return {"labels": chosen}


def refuse_proposals(facts: DataFacts, detector: Choice) -> None:
    """Refuses a detector that wants proposals: those of labelled recordings come from a generator that has seen
    them."""
    if build_detector(detector, facts).facts.wants_proposals:
        raise SettingsError(
            f"`learning.method`: found 'auto' with the detector {detector.name!r}, which wants proposals; expected a "
            "detector that finds segments by itself. Try: `learning.method.name=apl`."
        )
