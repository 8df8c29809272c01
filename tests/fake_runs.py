"""Run folders without any training: blurred truth in place of a network's output, scored and written by the package's
own functions. For tests of what reads a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from apl_jax.data.annotations import read_annotations
from apl_jax.data.dataset import truth_digest
from apl_jax.data.files import write_json
from apl_jax.evaluation.average_precision import (
    Instances,
    average_precision,
    instances_from_videos,
)
from apl_jax.evaluation.label_quality import label_quality
from apl_jax.evaluation.label_space import examples, label_space
from apl_jax.evaluation.submission import write_submission
from apl_jax.learning.class_division import DivisionSettings, divide_classes
from apl_jax.runs.artefacts import seal
from apl_jax.structs import Reason

TIOU = (0.3, 0.5, 0.7)
NAME = "made & <up>"


def make_run(
    folder: Path, classes: list[str], duration_s: float, length_s: float, rounds: int = 1, videos: int = 9,
    variants: tuple[str, ...] = ("supervised", "supervised_matched", "semi_supervised"), icd: bool = True,
    method: str = "apl", space: bool = False,
) -> Path:  # fmt: skip
    """A run folder as ``runs.run`` leaves it, with blurred truth in place of a network's output.

    Only the method ``nontarget`` has no labelling stage.
    """
    rng = np.random.default_rng(0)
    ids = [f"video_{v}" for v in range(videos)]
    per_video = int(min(duration_s / length_s / 2, 40))
    truth_s, labels = [], []
    for _ in ids:
        starts = np.sort(rng.choice(int(duration_s / length_s) - 1, per_video, replace=False)) * length_s
        truth_s.append(np.stack([starts, starts + length_s * rng.uniform(0.5, 1, per_video)], -1))
        labels.append(rng.integers(0, len(classes), per_video))
    data, run = folder / "data", folder / "run"
    database = {
        video: {
            "subset": "training" if v < videos - 3 else "test", "duration": duration_s, "fps": 50.0,
            "annotations": [
                {"segment": s.tolist(), "label": classes[c], "label_id": int(c)}
                for s, c in zip(truth_s[v], labels[v], strict=True)
            ] + [{"segment": [0, 1], "label": c, "label_id": i} for i, c in enumerate(classes) if v == 0],
        }
        for v, video in enumerate(ids)
    }  # fmt: skip
    write_json(data / "annotations.json", {"version": "test", "database": database})
    write_json(run / "settings.json", _settings(str(data), variants, rounds, method, icd))
    split = {"labelled": ids[:2], "unlabelled": ids[2 : videos - 3], "evaluation": ids[videos - 3 :]}
    write_json(run / "split.json", split | {"digest": "d" * 16})
    trained = {name: n for name, n in (("supervised", 500), ("supervised_matched", 700)) if name in variants}
    if "semi_supervised" in variants:
        trained |= {"pretrain": 300, "teacher": 200} | {f"self_train_{r}": 100 for r in range(1, rounds + 1)}
    scores, quality = {}, {}
    for name, steps in trained.items():
        _write_metrics(run / "stages" / name / "metrics.jsonl", steps, name)
        if name != "pretrain":
            rows = range(videos - 3, videos)
            scores[name] = _evaluate(run, name, [truth_s[v] for v in rows], [labels[v] for v in rows], classes, rng)
    for r in range(1, rounds + 1 if "semi_supervised" in variants and method != "nontarget" else 1):
        rows = range(2, videos - 3)
        quality[f"pseudo_label_{r}"] = _label(
            run / "stages" / f"pseudo_label_{r}", split["unlabelled"], [truth_s[v] for v in rows],
            [labels[v] for v in rows], classes, duration_s, rng,
        )  # fmt: skip
    spaces = {n: _divide(run, n, split["unlabelled"], classes, rng) for n in trained if space and n == "teacher"}
    for stage in (run / "stages").iterdir():
        seal(stage, "made up", {})
    write_json(run / "results.json", {
        "version": "0.1.0", "settings_fingerprint": "f" * 16, "seed": 0, "devices": "1 x cpu", "jax": "0.10.2",
        "data": {
            "name": NAME, "variant": "", "features": "read", "digest": "a" * 16, "classes": classes,
            "label_ratio": 0.1, "split_seed": 0,
            "split_digest": "d" * 16, "labelled": 2, "unlabelled": videos - 5, "evaluated": 3,
            "evaluated_on": "test subset",
            "truth": {
                role: truth_digest(read_annotations(data / "annotations.json"), split[role])
                for role in ("evaluation", "unlabelled")
            },
        },
        "protocol": "strict", "steps": trained, "external_digest": "", "matched_steps": 600, "variants": scores,
        "final_variant": next(reversed(scores)), "pseudo_labels": quality,
        "label_space": spaces,
    })  # fmt: skip
    return run


def _settings(root: str, variants: tuple[str, ...], rounds: int, method: str, icd: bool) -> dict[str, Any]:
    """``settings.json``, as far as the readers of a run look at it."""
    selection: dict[str, Any] = {
        "chain": ["dynamic"], "dynamic": {"tau_neg": 0.15, "deviations": 1.0, "tau_min": 0.2, "tau_max": 0.9},
    }  # fmt: skip
    if icd:
        selection["chain"].append("icd")
        selection["icd"] = {"eliminate": True, "promote": True, "eliminate_below": 0.3, "promote_above": 0.7}
    return {
        "seed": 0, "variants": list(variants), "detector": {"name": "actionformer", "decoding": {}},
        "data": {"name": NAME, "root": root, "label_ratio": 0.1, "split_seed": 0},
        "learning": {
            "rounds": rounds, "pretext": {"name": "contrast"}, "candidates": "ignore", "selection": selection,
            "teacher": {"name": "supervised", "icd": {"enabled": icd}},
            "method": {"name": method},
        },
        "evaluation": {"tiou": list(TIOU), "protocol": "strict", "label_space": {"enabled": False}},
        "runtime": {},
    }  # fmt: skip


def _blurred(
    truth_s: list[np.ndarray], labels: list[np.ndarray], classes: list[str], rng: np.random.Generator
) -> Instances:
    """Truth with shifted ends, some classes exchanged, and scores that know something about it."""
    segments, names, scores = [], [], []
    for s, c in zip(truth_s, labels, strict=True):
        wrong = rng.random(len(c)) < 0.3
        length = (s[:, 1] - s[:, 0])[:, None]
        segments.append(s + length * rng.normal(0, 0.1 + 0.3 * wrong[:, None], s.shape) * [1, 0.5])
        segments[-1] = np.stack([segments[-1].min(-1).clip(0), segments[-1].max(-1) + 0.01], -1)
        names.append(np.where(wrong, rng.integers(0, len(classes), len(c)), c))
        scores.append(np.where(wrong, rng.uniform(0.16, 0.7, len(c)), rng.uniform(0.3, 1, len(c))))
    return instances_from_videos(segments, names, scores)


def _evaluate(
    run: Path, variant: str, truth_s: list, labels: list, classes: list[str], rng: np.random.Generator
) -> dict:
    predictions = _blurred(truth_s, labels, classes, rng)
    ids = json.loads((run / "split.json").read_text())["evaluation"]
    write_submission(run / "stages" / f"{variant}_evaluation" / "predictions.json", predictions, ids, classes)
    truth = instances_from_videos(truth_s, labels)
    return average_precision(truth, predictions, TIOU, len(classes), (1, 5)).as_dict(classes)


def _label(
    folder: Path, ids: list[str], truth_s: list, labels: list, classes: list[str], duration_s: float,
    rng: np.random.Generator,
) -> dict[str, Any]:  # fmt: skip
    found = _blurred(truth_s, labels, classes, rng)
    similarity = rng.uniform(0.2, 0.8, len(found))
    positive = found.score > 0.6
    reason = np.where(positive, np.where(similarity < 0.3, Reason.DROPPED, Reason.KEPT), Reason.CANDIDATE)
    reason = np.where(~positive & (similarity > 0.7), Reason.PROMOTED, reason)
    database: dict[str, Any] = {
        video: {"subset": "training", "duration": duration_s, "fps": 50.0, "annotations": [], "ignored": []}
        for video in ids
    }
    for i, v in enumerate(found.video):
        r = Reason(int(reason[i]))
        chosen = "annotations" if r in (Reason.KEPT, Reason.PROMOTED) else "ignored"
        database[ids[v]][chosen].append({
            "label": classes[found.label[i]], "label_id": int(found.label[i]), "segment": found.segments_s[i].tolist(),
            "confidence": float(found.score[i]), "score": float(found.score[i]) ** 0.5, "tiou": 0.9, "tnd": 0.01,
            "similarity": float(similarity[i]), "reason": r.name.lower(), "weight": 1.0,
        })  # fmt: skip
    write_json(folder / "pseudo_labels.json", {"version": "pseudo labels", "database": database})
    counts = {r.name.lower(): int((reason == r).sum()) for r in Reason if r is not Reason.BELOW_THRESHOLD}
    quality = label_quality(found, reason, instances_from_videos(truth_s, labels))
    return {"tau_pos": 0.6, "counts": counts, "quality": quality, "seconds": 1.0}


def _divide(run: Path, name: str, ids: list[str], classes: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """Random beliefs of random truth, divided and counted by the package."""
    probability = rng.dirichlet([0.5] * (len(classes) + 1), (len(ids), 30)).astype(np.float32)
    part = np.asarray(divide_classes(jnp.asarray(probability), DivisionSettings()))
    truth = rng.integers(0, len(classes) + 1, part.shape[:2])
    mask, time_t = np.ones(truth.shape, bool), np.tile(np.arange(30.0), (len(ids), 1))
    shown = examples(probability, part, time_t, mask, truth, 4)
    shown = [row | {"video": ids[row["video"]], "time_s": row["time_t"]} for row in shown]
    path = run / "stages" / f"{name}_label_space" / "label_space.json"
    plane = {"points": rng.normal(size=(40, 2)).tolist(), "truth": rng.integers(0, len(classes) + 1, 40).tolist()}
    write_json(path, {"classes": [*classes, "background"], "examples": shown, "plane": plane})
    return label_space(part, mask, truth)


def _write_metrics(path: Path, steps: int, stage: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(25, steps + 1, 25):
        row: dict[str, float] = {"step": step, "loss": 1 / step, "gradient_norm": 1.0}
        row |= (
            {"contrast_coarse": 2 / step}
            if stage == "pretrain"
            else {"labelled/class": 1 / step, "labelled/quality": 0}
        )
        row |= {"icd/loss": 1.3, "icd/accuracy": 0.6} if stage == "teacher" else {}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines) + '{"step": 9999, "lo')  # broken off while a line was written
