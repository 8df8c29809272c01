# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How good the pseudo labels of a run are
#
# A semi-supervised run (`apl-jax run`, or `apl_jax.train`) labels its unlabelled videos with its own predictions. This
# notebook opens the folder of a finished run and compares those labels with the truth: how they were scored (ALQA),
# which threshold they had to reach (tau_pos), what the discriminator changed (ICD), and how pre-training (ACP) changed
# the features. The *truth* is the annotation of the unlabelled videos, which training never saw.
#
# Sections, equations and figures are those of the paper, *Towards Adaptive Pseudo-label Learning for Semi-Supervised
# Temporal Action Localization*. Set the environment variable `APL_RUN` to the folder of another run.

# %%
import contextlib
import os
from pathlib import Path

import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure

import apl_jax as apl
from apl_jax.evaluation.average_precision import find_overlaps, instances_from_annotations
from apl_jax.evaluation.label_quality import POSITIVE_TIOU, quality_per_class, set_quality
from apl_jax.report import figures as plots
from apl_jax.report.finished_run import open_run
from apl_jax.report.tables import MEASURES, aligned, percents
from apl_jax.structs import Reason

FOLDER = Path(os.environ.get("APL_RUN", "../runs/spsw")).resolve()
with contextlib.chdir(".."):  # a relative data.root counts from the project's folder
    run = open_run(FOLDER)  # the run's files as arrays, and the truth


def show(draw, height_in, *arrays, width_in=plots.FULL_WIDTH_IN):
    """A drawing of apl_jax.report.figures; point at its parts to read them."""
    figure = Figure((width_in, height_in), layout="constrained")
    draw(figure, *arrays)
    return HTML(plots.to_svg(figure))


with contextlib.chdir(".."):
    print(apl.load_run(FOLDER).table())

# %% [markdown]
# ## The labels of the last round
#
# One row for each detection above tau_neg on an unlabelled video; weaker ones were not considered. `reason` says what
# was decided about it: *kept* and *promoted* ones are pseudo labels, *dropped* ones and *candidates* are not.
# `apl.load_run(FOLDER).pseudo_labels()` gives the same detections by recording.

# %%
if not run.results["pseudo_labels"]:
    raise SystemExit(f"{FOLDER}: this run has no pseudo labels; set APL_RUN to one with the variant semi_supervised")
STAGE = list(run.results["pseudo_labels"])[-1]
record, selection = run.results["pseudo_labels"][STAGE], run.chosen.learning.selection
dynamic, icd = selection.settings_of("dynamic"), selection.settings_of("icd")  # None where the chain has no such link
labels, classes = run.pseudo_labels(STAGE), run.truth.classes
confidence, reason = labels.instances.score, labels.reason
truth = instances_from_annotations(run.records("unlabelled"))
colours = plots.class_colours(np.bincount(truth.label, minlength=len(classes)))
print(STAGE, {r.name.lower(): int((reason == r).sum()) for r in plots.REASON_COLOURS})

# %% [markdown]
# ## Scores
#
# ALQA (section 3.1) multiplies the class probability by a predicted reliability of start and end (Eq. 4): *tIoU*, the
# predicted overlap, less *tND*, the predicted distance of the centres (Eq. 1). The class score alone does not depend on
# start and end.

# %%
quality = np.clip(labels.tiou - labels.tnd, 0, 1)
numbers = {"score": labels.score, "tIoU": labels.tiou, "tND": labels.tnd, "confidence": confidence}
show(plots.reason_histograms, 2.4, numbers, reason, {})

# %% [markdown]
# The overlap that a detection really has with the truth, against what was predicted for it. A number helps to choose
# labels where its line rises: the higher the correlation r, the better the number ranks detections by their overlap.

# %%
overlaps = find_overlaps(truth, labels.instances, floor=0.0, same_class=False)
tiou = np.zeros(len(confidence))
np.maximum.at(tiou, overlaps.prediction, overlaps.tiou)
show(plots.calibration, 2.6, {"score": labels.score, "quality": quality, "confidence": confidence}, tiou)

# %% [markdown]
# ## tau_pos: the threshold
#
# The rule `dynamic` sets the threshold to mean + standard deviation of the confidences (section 3.1, Eq. 6), times
# `deviations`, pooled over all detections above tau_neg unless the settings say otherwise, and clipped. The cell
# computes it again.

# %%
if dynamic is not None:
    tau = np.clip(confidence.mean() + dynamic.deviations * confidence.std(), dynamic.tau_min, dynamic.tau_max)
    pooled = "" if dynamic.scope == "pooled" else " (pooled)"
    print(f"tau_pos of the run {record['tau_pos']:.4f}, mean + deviation {tau:.4f}{pooled}")
NAME = "confidence = score × quality"
marks = {NAME: [(run.selection_setting("tau_neg") or 0.0, "τ neg"), (record["tau_pos"], "τ pos")]}
show(plots.reason_histograms, 2.8, {NAME: confidence}, reason, marks)

# %% [markdown]
# What other thresholds would have selected from the same detections, before ICD. The fixed threshold of .3 is the
# baseline of Table 2 and of Figure 3(c). With a higher threshold precision rises and recall falls.

# %%
rows = [["tau_pos", "labels", *MEASURES.values()]]
for value in sorted({0.3, 0.5, 0.7, record["tau_pos"]}):
    scores = set_quality(labels.instances.select(confidence >= value), truth)
    rows.append([f"{value:.3g}", f"{scores['count']:,}", *percents(scores[name] for name in MEASURES)])
print(aligned(rows))

# %% [markdown]
# ## ICD: what EAP and MPP changed
#
# The discriminator compares every detection with the labelled instances of its class (section 3.2, Eq. 10). EAP drops
# detections above the threshold whose similarity is low, MPP promotes candidates whose similarity is high. Bars as in
# Figure 3(c).

# %%
show(plots.quality_bars, 2.6, record["quality"], width_in=plots.HALF_WIDTH_IN)

# %%
NAME = "similarity to labelled instances of the class"
marks = {NAME: [(icd.eliminate_below, "EAP below"), (icd.promote_above, "MPP above")]} if icd is not None else {}
show(plots.reason_histograms, 2.8, {NAME: labels.similarity}, reason, marks)

# %% [markdown]
# A detection is *right* when an instance of its class overlaps it by a tIoU of .5 or more. Those that EAP dropped
# should be mostly wrong, those that MPP promoted mostly right (Figure S4 shows examples). The last two lines are about
# all detections: how often a right one has a larger number than a wrong one. 50 % is what a random number reaches.

# %%
from sklearn.metrics import roc_auc_score

same_class = find_overlaps(truth, labels.instances, floor=POSITIVE_TIOU)
right = np.isin(np.arange(len(confidence)), same_class.prediction)
for name, r in (("EAP dropped", Reason.DROPPED), ("MPP promoted", Reason.PROMOTED)):
    print(f"{name} {(reason == r).sum()}, of which {right[reason == r].sum()} are right")
if 0 < right.sum() < len(right):
    for name, column in (("similarity", labels.similarity), ("confidence", confidence)):
        print(f"{name} ranks a right one above a wrong one in {100 * roc_auc_score(right, column):.1f} % of pairs")

# %% [markdown]
# ## Calibration: what a confidence promises
#
# Each point is a tenth of the detections: their mean confidence, and how many of them are right, a second detection of
# an instance being wrong. Above the diagonal the network promises too little, below it too much. A run with
# `learning.method.name=auto` knows this line before it labels, from networks on labelled recordings that they have not
# seen; from it follows the threshold, and the precision that it promises.

# %%
from apl_jax.evaluation.held_out import calibration_error, judge, reliability

judged = judge(truth, labels.instances, labels.similarity)
error = calibration_error(judged.confidence, judged.right)
diagrams = {f"unlabelled, error {error:.2f}": reliability(judged.confidence, judged.right)}
made = run.results.get("decisions", {}).get("decide_teacher", {})
if held := made.get("calibration"):
    diagrams[f"held out, error {held['error']:.2f}"] = held["diagram"]
    diagrams[f"held out, calibrated, error {held['corrected_error']:.2f}"] = held["corrected_diagram"]
if point := made.get("operating_point"):
    true_precision = record["quality"]["before_icd"]["precision"]
    print(f"precision at the threshold: {point['precision']:.2f} promised, {true_precision:.2f} true")
show(plots.reliability, 2.6, diagrams, width_in=plots.HALF_WIDTH_IN)

# %% [markdown]
# ## Classes
#
# With one threshold for all classes, classes with high scores get more pseudo labels than others. Compare the coloured
# bar, the pseudo labels, with the grey one, the true instances.

# %%
per_class = quality_per_class(labels.instances, reason, truth, classes, "final")
rows = [["final labels", "labels", *MEASURES.values()]]
rows += [[name, f"{s['count']:,}", *percents(s[m] for m in MEASURES)] for name, s in per_class.items()]
print(aligned(rows))

# %%
selected = np.array([s["count"] for s in per_class.values()])
correct = np.array([round(s["count"] * (s["precision"] or 0)) for s in per_class.values()])
true = np.bincount(truth.label, minlength=len(classes))
height = 0.8 + 0.34 * min(len(classes), plots.MOST_BARS)
show(plots.class_counts, height, classes, true, selected, correct, colours, width_in=plots.HALF_WIDTH_IN)

# %% [markdown]
# ## Timelines
#
# The four videos in which ICD changed most, or the first four where it changed nothing. Detections of higher confidence
# are drawn more opaque; point at one to read its class.

# %%
changed = np.isin(reason, (Reason.DROPPED, Reason.PROMOTED))
videos = run.records("unlabelled")
order = np.argsort(-np.bincount(labels.instances.video[changed], minlength=len(videos)), kind="stable")


def lane(name, rows, colour):
    found = labels.instances.select(rows)
    tips = [f"{classes[c]}, confidence {x:.2f}" for c, x in zip(found.label, found.score, strict=True)]
    return plots.Lane(name, found.segments_s, found.label, found.score, tips, colour)


def panel(v):
    video = videos[v]
    known = plots.Lane("truth", video.segments_s, video.labels, tips=[classes[c] for c in video.labels])
    rows = {r: (labels.instances.video == v) & (reason == r) for r in plots.REASON_COLOURS}
    lanes = [lane(r.name.lower(), rows[r], colour) for r, colour in plots.REASON_COLOURS.items()]
    return plots.Panel(video.id, (0.0, video.duration_s), [known, *lanes])


panels = [panel(v) for v in order[:4]]
show(plots.timelines, plots.timeline_height(panels), panels, colours)

# %% [markdown]
# ## Learnt frames, before and after ACP
#
# ACP (section 3.3) trains the network so that frames of one action become similar, and frames of actions and of the
# background different, at first without any label. Here are the same frames of unlabelled videos in four
# representations: the input features, the detector as it is initialised, after pre-training, and the teacher that made
# the labels of the first round. Every class and the background give equally many frames, as far as they have them.

# %%
from apl_jax.runs.context import TRAINING, UNLABELLED_TRUTH
from apl_jax.runs.frames import representations, sample_frames
from apl_jax.runs.run import open_run as open_context

with contextlib.chdir(".."):
    inputs = open_context(run.settings, FOLDER).inputs((TRAINING, UNLABELLED_TRUTH))
frames = sample_frames(inputs, videos=32, frames=500)
row, kind, BACKGROUND = frames.row, frames.kind, len(classes)
print(f"{len(kind)} frames: {(kind == BACKGROUND).sum()} of background")
wanted = {"after ACP": "pretrain", "teacher": "teacher"}
stages = {name: stage for name, stage in wanted.items() if stage in run.results["steps"]}
features = representations(run.chosen.detector, inputs, stages, frames)
print("; ".join(f"{name}: {x.shape[-1]} numbers" for name, x in features.items()))

# %% [markdown]
# t-SNE draws frames near one another that are similar; distances between groups mean little. First action and
# background, as in Figure 4(a), then the classes, as in Figure 4(b).

# %%
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

embed = TSNE(perplexity=min(30, len(kind) // 4), init="pca", random_state=0).fit_transform
with threadpool_limits(1):  # with so few points threads gain nothing, and on a busy machine they take longer
    points = {name: embed(StandardScaler().fit_transform(x)) for name, x in features.items()}
two = [("background", kind == BACKGROUND, "#B0B0B0"), ("action", kind != BACKGROUND, "#CC6677")]
show(plots.embeddings, 3.2, points, two)

# %%
named = [(classes[c], kind == c, colours[c]) for c in range(len(classes)) if (kind == c).any()]
show(plots.embeddings, 3.2, points, [("background", kind == BACKGROUND, "#D8D8D8"), *named])

# %% [markdown]
# Table S2 measures the same with a linear classifier, trained on the frames of half of these videos: which share of the
# other half's frames it classifies rightly (classes and background), and which share on average over the classes.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score

train = row % 2 == 0
rows = [["linear classifier, %", "accuracy", "recall"]]
for name, x in features.items():
    x = StandardScaler().fit(x[train]).transform(x)
    guess = LogisticRegression(C=0.1, max_iter=2000).fit(x[train], kind[train]).predict(x[~train])
    rows.append([name, *percents((accuracy_score(kind[~train], guess), balanced_accuracy_score(kind[~train], guess)))])
print(aligned(rows))
