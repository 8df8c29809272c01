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
# # Where the true class is when a network chooses another
#
# On a snippet without label a network gives every class a probability. *Learning from Non-Target Classes* divides the
# classes into the target (the likeliest), positive (nearly as likely), negative (the least likely, together no likelier
# than the target) and ambiguous ones, and learns from all but the ambiguous ones. This notebook opens a finished run
# that measured this (`evaluation.label_space.enabled`, as the configuration `spsw_nontarget` sets it), checks the
# paper's two claims on it, and shows the learnt features. The *truth* is the annotation of the unlabelled videos, which
# training never saw.
#
# Sections and figures are those of the paper. Set the environment variable `APL_RUN` to the folder of another run.

# %%
import contextlib
import os
from pathlib import Path

import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure

import apl_jax as apl
from apl_jax.learning.class_division import ClassRelation, DivisionSettings, divide_classes
from apl_jax.report import figures as plots
from apl_jax.report.finished_run import open_run
from apl_jax.report.label_space import foreground_groups, hardest_groups
from apl_jax.report.tables import aligned, percents, stage_name

FOLDER = Path(os.environ.get("APL_RUN", "../runs/spot")).resolve()
with contextlib.chdir(".."):  # a relative data.root counts from the project's folder
    run = open_run(FOLDER)  # the run's files as arrays, and the truth
if not run.results.get("label_space"):
    raise SystemExit(f"{FOLDER}: nothing was measured; run it again with evaluation.label_space.enabled=True")


def show(draw, height_in, *arrays, width_in=plots.FULL_WIDTH_IN):
    """A drawing of apl_jax.report.figures; point at its parts to read them."""
    figure = Figure((width_in, height_in), layout="constrained")
    draw(figure, *arrays)
    return HTML(plots.to_svg(figure))


with contextlib.chdir(".."):
    print(apl.load_run(FOLDER).table())

# %% [markdown]
# ## Two claims
#
# Section III-B: when the target is wrong, the true class is mostly among the other likely classes; and it is hardly
# ever among the least likely ones. One bar per network, over the snippets of unlabelled videos where an action is.

# %%
space = run.results["label_space"]
shares = {stage_name(name): value["foreground"] for name, value in space.items()}
show(plots.true_class_shares, 1.1 + 0.32 * len(shares), shares)

# %%
rows = [["target wrong, true class is", *(p.name.lower() for p in ClassRelation if p is not ClassRelation.TARGET), "snippets"]]
for name, share in shares.items():
    wrong = share["when_wrong"]
    parts = (wrong.get(p.name.lower()) for p in ClassRelation if p is not ClassRelation.TARGET)
    rows.append([name, *percents(parts), f"{wrong['snippets']:,} of {share['snippets']:,}"])
print(aligned(rows))

# %% [markdown]
# ## Distributions (Figure 6)
#
# The snippets with the most even distributions; in half of those shown the target is wrong. ★ is the true class.

# %%
document = run.label_space(list(space)[-1])
examples, names = document["examples"], document["classes"]
if not examples:
    raise SystemExit("this run kept no examples (evaluation.label_space.examples=0)")
height = 0.5 + -(-len(examples) // 3) * (0.55 + 0.17 * min(len(names), plots.MOST_CLASSES))
show(plots.class_distributions, height, examples, names)

# %% [markdown]
# The same snippets with other values of lambda, which Table IV varies: how many positive classes each has, and for how
# many of them the true class would be positive.

# %%
probability = np.array([row["probability"] for row in examples])
true_class = np.array([row["truth"] for row in examples])
rows = [["lambda", "positive classes", "true class is positive"]]
for closeness in (0.9, 0.85, 0.75, 0.6, 0.5):
    part = np.asarray(divide_classes(probability, DivisionSettings(closeness=closeness)))
    hits = (np.take_along_axis(part, true_class[:, None], 1) == ClassRelation.POSITIVE).sum()
    rows.append([f"{closeness:.2f}", f"{(part == ClassRelation.POSITIVE).sum(1).mean():.1f}", f"{hits} of {len(examples)}"])
print(aligned(rows))

# %% [markdown]
# ## Learnt snippets (Figures 3 and 4)
#
# The same frames of unlabelled videos in the teacher, which was trained on labelled videos only, and in the
# self-trained network. t-SNE draws frames near one another that are similar; distances between groups mean little.
# First foreground and background.

# %%
planes = {stage_name(stage): plane for stage in space if (plane := run.label_space(stage).get("plane"))}
if not planes:
    raise SystemExit("this run kept no frames (evaluation.label_space.frames=0)")
points = {name: np.array(plane["points"]) for name, plane in planes.items()}
truth = np.array(next(iter(planes.values()))["truth"])
show(plots.embeddings, 3.4, points, foreground_groups(truth, len(run.truth.classes)))

# %% [markdown]
# Then the hardest classes: those with the lowest average precision of the run's last network.

# %%
show(plots.embeddings, 3.4, points, hardest_groups(truth, run.truth.classes, run.results))
