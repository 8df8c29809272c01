"""How long P-GCN takes for one recording, against a plain program that builds every graph of 21 nodes.

    python benchmarks/proposal_graph.py [--proposals 800] [--steps 1000] [--width 1024] [--rounds 5]

Sizes are those of THUMOS14: features of one stream, 20 classes. The plain program does what the public code does: for
each proposal the features of its 21 nodes, their adjacency, two graph convolutions, of which the centre's row is read.
Both run in one process and take turns; medians count. Both give the same numbers, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from apl_jax.detectors import build
from apl_jax.detectors.pgcn import find_neighbours, pool_parts
from apl_jax.detectors.pgcn_settings import PgcnSettings
from apl_jax.ops.proposal_graph import graph_nodes
from apl_jax.structs import Array, Batch, Detections, PyTree, Targets

CLASSES = 20
_NEIGHBOURS = 4


def recording(proposals: int, steps: int, width: int) -> Batch:
    """One recording with proposals of 4 to 40 grid steps, in groups that overlap."""
    draws = np.random.default_rng(0)
    start = draws.integers(0, steps // 20, proposals) * 20.0 + draws.uniform(0, 3, proposals)
    segments_t = np.stack([start, start + draws.uniform(4, 40, proposals)], -1)[None]
    one = jnp.ones((1, proposals))
    found = Detections(jnp.asarray(segments_t, jnp.float32), one.astype(int), one, one, one, 0 * one, one > 0)
    nothing = jnp.zeros((1, 1))
    targets = Targets(jnp.zeros((1, 1, 2)), nothing.astype(int), nothing > 0, nothing, nothing > 0)
    features = jnp.asarray(draws.normal(size=(1, steps, width)), jnp.float32)
    return Batch(features, jnp.ones((1, steps), bool), targets, jnp.zeros(1, jnp.int32), found)


def plain_graph(params: PyTree, features: Array, nodes: Array) -> Array:
    """The centre's row ``[K, D]`` of two convolutions over the graphs ``nodes [K, 21]`` of ``features [K, D]``."""
    x = features[nodes]  # [K, 21, D]
    unit = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    share = np.eye(nodes.shape[1], dtype=np.float32)
    share[_NEIGHBOURS + 1 :] = 0
    for row in range(_NEIGHBOURS + 1):
        first = _NEIGHBOURS * row + 1
        share[row, first : first + _NEIGHBOURS] = 1 / _NEIGHBOURS
    adjacency = jnp.maximum(jnp.einsum("kid,kjd->kij", unit, unit), 0) * share
    for name in ("layer_0", "layer_1"):
        x = jnp.einsum("kij,kjd->kid", adjacency, x @ params[name]["kernel"]) + params[name]["bias"]
        x = jax.nn.relu(x) if name == "layer_0" else x
    return x[:, 0]


def plain(params: PyTree, batch: Batch, settings: PgcnSettings) -> tuple[Array, Array]:
    """Activity and completeness ``[1, K, ...]`` by graphs that are built one and all."""
    assert batch.proposals is not None
    nodes = graph_nodes(find_neighbours(batch.proposals, None, settings)[0])
    pooled = pool_parts(batch.features, batch.proposals.segments_t, batch.mask.sum(-1), settings.extension)
    found = []
    for graph, head, (features,) in zip(
        ("act_graph", "comp_graph"), ("class_head", "completeness_head"), pooled, strict=True
    ):
        around = jnp.concatenate([plain_graph(params[graph], features, nodes), features], axis=-1)
        found.append((around @ params[head]["kernel"] + params[head]["bias"])[None])
    return found[0], found[1]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("proposals", 800), ("steps", 1000), ("width", 1024), ("rounds", 5)):
        flags.add_argument(f"--{name}", type=int, default=usual)
    args = flags.parse_args()
    detector, settings = build("pgcn", feature_width=args.width, num_classes=CLASSES), PgcnSettings()
    params, _ = detector.init(jax.random.key(0))
    batch = recording(args.proposals, args.steps, args.width)

    def whole(params: PyTree, batch: Batch) -> tuple[Array, Array, Detections]:
        outputs = detector.apply(params, batch, None)
        return outputs.activity_logits, outputs.completeness, detector.decode(outputs)

    programs = {
        "apply and decode": (jax.jit(whole), params),
        "every graph": (jax.jit(lambda params, batch: plain(params, batch, settings)), params["proposals"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    results = {name: jax.block_until_ready(run(own, batch)) for name, (run, own) in programs.items()}
    for ours, theirs in zip(results["apply and decode"], results["every graph"], strict=False):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    for _ in range(args.rounds):
        for name, (run, own) in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(own, batch))
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in medians.items():
        print(f"{name:20s} {taken:8.3f} s   {taken / medians['every graph']:6.3f} of every graph")


if __name__ == "__main__":
    main()
