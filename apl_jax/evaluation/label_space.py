"""Where the true class of unlabelled snippets falls among target, positive, negative and ambiguous classes.

Paper 002 rests on two claims (III-B): a true class that is not the target is mostly among the other likely classes, and
hardly ever among the least likely ones. Here both are counted, against truth that training never sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apl_jax.data.annotations import VideoRecord
from apl_jax.learning.class_division import ClassRelation


def frame_truth(seconds_s: np.ndarray, record: VideoRecord, background: int) -> np.ndarray:
    """The annotated class ``[S]`` at each time ``[S]``: that of the shortest instance there, else ``background``.

    -1 in a recording that nobody annotated, and where that instance is to be ignored.
    """
    if not record.annotated:
        return np.full(len(seconds_s), -1)
    inside = (seconds_s[:, None] >= record.segments_s[:, 0]) & (seconds_s[:, None] <= record.segments_s[:, 1])
    duration = np.where(inside, record.segments_s[:, 1] - record.segments_s[:, 0], np.inf)
    if not record.labels.size:
        return np.full(len(seconds_s), background)
    labels = np.where(record.ignore, -1, record.labels)
    return np.where(inside.any(-1), labels[np.argmin(duration, -1)], background)


def label_space(part: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Shares of snippets by what their true class is to them, as JSON types.

    Args:
        part: :class:`ClassRelation` of every class of every snippet ``[V, S, C + 1]``.
        mask: which snippets count, ``[V, S]``.
        truth: class in [0, C] of every snippet ``[V, S]``, C being background.

    Returns:
        ``all``, and ``foreground`` (the true class is an action): ``snippets``, the share of each part, and
        ``when_wrong``: the same shares among the snippets whose target is not the true class. A share of nothing is
        None.
    """
    fallen = np.take_along_axis(part, truth[..., None], -1)[..., 0]
    background = part.shape[-1] - 1
    sets = {"all": mask, "foreground": mask & (truth != background)}
    return {name: _shares(fallen[rows]) for name, rows in sets.items()}


def planar_embedding(features: np.ndarray) -> np.ndarray:
    """t-SNE of ``[M, E]`` features, standardised first: ``[M, 2]``, zeros where there are too few to embed.

    It keeps neighbours together; distances between clusters mean little.
    """
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    perplexity = min(30, len(features) // 4)
    if perplexity < 1:
        return np.zeros((len(features), 2))
    with threadpool_limits(1):  # so few points gain nothing from threads, and lose much on a busy machine
        embed = TSNE(perplexity=perplexity, init="pca", random_state=0)
        return embed.fit_transform(StandardScaler().fit_transform(features))


def _shares(fallen: np.ndarray) -> dict[str, Any]:
    names = {kind: kind.name.lower() for kind in ClassRelation}
    wrong = fallen[fallen != ClassRelation.TARGET]
    share = lambda rows, kind: float((rows == kind).mean()) if len(rows) else None
    return {
        "snippets": len(fallen),
        **{name: share(fallen, kind) for kind, name in names.items()},
        "when_wrong": {
            "snippets": len(wrong),
            **{name: share(wrong, kind) for kind, name in names.items() if kind is not ClassRelation.TARGET},
        },
    }


def examples(
    probability: np.ndarray, part: np.ndarray, time_t: np.ndarray, mask: np.ndarray, truth: np.ndarray, count: int
) -> list[dict[str, Any]]:
    """At most ``count`` foreground snippets with their whole distribution, as JSON types: half wrong, the rest right.

    Of each kind those with the most evenly divided belief, one per video.
    """
    background = part.shape[-1] - 1
    fallen = np.take_along_axis(part, truth[..., None], -1)[..., 0]
    usable = mask & (truth != background)
    entropy = -(probability * np.log(np.maximum(probability, 1e-12))).sum(-1)
    chosen = _most_divided(usable & (fallen != ClassRelation.TARGET), entropy, count // 2)
    chosen += _most_divided(usable & (fallen == ClassRelation.TARGET), entropy, count - len(chosen))
    return [
        {
            "video": v, "time_t": float(time_t[v, s]), "truth": int(truth[v, s]),
            "probability": [round(float(x), 6) for x in probability[v, s]], "part": part[v, s].tolist(),
        }
        for v, s in chosen
    ]  # fmt: skip


def _most_divided(rows: np.ndarray, entropy: np.ndarray, count: int) -> list[tuple[int, int]]:
    """(video, snippet) of highest entropy under a mask ``[V, S]``, the ``count`` videos where it is highest."""
    value = np.where(rows, entropy, -1.0)
    videos = np.argsort(-value.max(-1), kind="stable")[:count]
    return [(int(v), int(value[v].argmax())) for v in videos if rows[v].any()]
