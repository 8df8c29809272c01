"""What every detector promises of its outputs, whatever they are: how they are batched, flipped and compared.

Methods rely on it without knowing a detector: passes go through the network together and are taken apart again, a
student is compared with a teacher, also one that has seen the video backwards (``detectors/base.py``).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import CLASSES, FEATURE_WIDTH, is_usual, random_batch, random_weights, rarely, variants

from apl_jax.detectors import Detector, build_detector
from apl_jax.learning.method import join_batches, split_batch
from apl_jax.registry import DETECTORS
from apl_jax.structs import DataFacts, PyTree

CASES = [(detector, variant) for detector in DETECTORS for variant in variants(detector)]
# Of no other size that occurs, so that B can be told from it.
LENGTHS, STEPS = (20, 13, 1, 9, 17, 20, 6), 20
VIDEOS = len(LENGTHS)
BATCH = random_batch(LENGTHS, STEPS)
EVERY, NONE = jnp.ones(VIDEOS, bool), jnp.zeros(VIDEOS, bool)
ONE_OUT = EVERY.at[1].set(False)


@pytest.fixture(scope="module", params=rarely(CASES, is_usual), ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[Detector, PyTree, PyTree]:
    """A detector, with the weights of a student and of a teacher."""
    name, variant = request.param
    detector = build_detector(variants(name)[variant], DataFacts(FEATURE_WIDTH, CLASSES))
    shapes, _ = jax.eval_shape(detector.init, jax.random.key(0))
    return detector, random_weights(shapes, 1), random_weights(shapes, 2)


@pytest.fixture(scope="module")
def outputs(case: tuple[Detector, PyTree, PyTree]) -> tuple[Any, Any]:
    """Of the student and of the teacher on one view."""
    detector, student, teacher = case
    run = jax.jit(lambda params: detector.apply(params, BATCH, None))
    return run(student), run(teacher)


Case = tuple[Detector, PyTree, PyTree]
Pair = tuple[Any, Any]


def assert_close(found: PyTree, expected: PyTree, atol: float = 1e-5) -> None:
    rows = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True)
    for (path, ours), theirs in rows:
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=atol, err_msg=jax.tree_util.keystr(path))


def test_all_leaves_begin_with_the_videos(case: Case, outputs: Pair) -> None:
    detector, (found, _) = case[0], outputs
    made = jax.eval_shape(
        lambda o: (
            o, o.distribution(), o.represent(jnp.zeros((VIDEOS, 3), int)), detector.decode(o), detector.annotate(o),
            detector.flip(o), detector.loss(o, BATCH.targets, detector.init(jax.random.key(0))[1], None).points,
        ),
        found,
    )  # fmt: skip
    for path, leaf in jax.tree_util.tree_leaves_with_path(made):
        assert leaf.shape[:1] == (VIDEOS,), (jax.tree_util.keystr(path), leaf.shape)
    classes, seen = made[1], made[-1]
    snippets = classes.mask.shape
    assert classes.time_t.shape == snippets and seen.foreground_mask.shape == seen.silent_mask.shape == snippets
    for leaf in (classes.probability, classes.log_in, classes.log_out, seen.classes):
        assert leaf.shape == (*snippets, CLASSES + 1)
    assert made[2].shape[:2] == (VIDEOS, 3)


def test_passes_may_share_a_batch(case: Case, outputs: Pair) -> None:
    """Videos that go through the network together do not see one another."""
    detector, student, _ = case
    first = random_batch(LENGTHS[:3], STEPS, seed=5, instances=2)
    joined = join_batches([first, BATCH])
    apply = jax.jit(lambda batch: detector.apply(student, batch, None))
    alone, (together, rest) = apply(first), split_batch(apply(joined), [3, VIDEOS])
    assert_close(together, alone)
    assert_close(rest, outputs[0])


def test_twice_the_flip_is_the_identity(case: Case, outputs: Pair) -> None:
    """Of all that can be asked of outputs, on valid steps; and once is not."""
    detector, (found, _) = case[0], outputs

    @jax.jit
    def examine(found: Any) -> tuple:
        rows = jnp.tile(jnp.arange(STEPS), (VIDEOS, 1))
        return tuple(
            (o.distribution(), o.represent(rows), detector.decode(o))
            for o in (found, detector.flip(found), detector.flip(detector.flip(found)))
        )

    def valid(seen: tuple) -> tuple:
        classes, represented, detections = jax.device_get(seen)
        of_valid = lambda tree, mask: [leaf[mask] for leaf in jax.tree.leaves(tree)]
        steps = np.asarray(BATCH.mask)
        return of_valid(classes, classes.mask), represented[steps], of_valid(detections, detections.mask)

    before, once, twice = map(valid, examine(found))
    assert_close(twice, before)
    assert not np.allclose(once[1], before[1], atol=1e-2)
    assert jax.tree.map(jnp.shape, detector.flip(found)) == jax.tree.map(jnp.shape, found)
    assert type(detector.flip(found)) is type(found)


def test_outputs_are_not_apart_from_themselves(case: Case, outputs: Pair) -> None:
    detector, (student, teacher) = case[0], outputs
    compare = jax.jit(detector.compare)
    for mask in (EVERY, ONE_OUT, NONE):
        for value in compare(student, student, mask).values():
            assert value.shape == () and abs(float(value)) <= 1e-6
    apart = compare(student, teacher, EVERY)
    assert apart and all(float(value) >= 0 for value in apart.values()) and sum(map(float, apart.values())) > 1e-3
    # The flip belongs to the comparison: what it gives can be compared with the other outputs.
    assert all(jnp.isfinite(value) for value in compare(student, detector.flip(teacher), EVERY).values())


def test_comparison_teaches_the_student_of_the_videos_that_count(case: Case, outputs: Pair) -> None:
    """Finite with its gradient also where no video counts; none reaches the teacher, or a video left out."""
    detector, (student, teacher) = case[0], outputs

    @jax.jit
    def gradients(student: Any, teacher: Any, mask: jax.Array) -> tuple:
        total = lambda s, t: sum(detector.compare(s, t, mask).values(), jnp.zeros(()))
        return jax.value_and_grad(total, (0, 1), allow_int=True)(student, teacher)

    numbers = lambda tree: [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    for mask in (EVERY, ONE_OUT, NONE):
        for pair in ((student, teacher), (student, student)):
            value, (of_student, of_teacher) = gradients(*pair, mask)
            assert jnp.isfinite(value) and all(jnp.isfinite(x).all() for x in numbers(of_student))
            assert not any(x.any() for x in numbers(of_teacher))
    value, (of_student, _) = gradients(student, teacher, ONE_OUT)
    assert any(x[0].any() for x in numbers(of_student)) and not any(x[1].any() for x in numbers(of_student))
    value, (of_student, _) = gradients(student, teacher, NONE)
    assert value == 0 and not any(x.any() for x in numbers(of_student))


def test_loss_takes_what_annotate_gives(case: Case, outputs: Pair) -> None:
    """A detector's own predictions in place of annotations, without a gradient through them, with and without a key."""
    detector, (found, other) = case[0], outputs
    state = detector.init(jax.random.key(0))[1]

    @jax.jit
    def examine(found: Any, other: Any) -> tuple:
        through = lambda o: detector.loss(other, detector.annotate(o), state, None).total
        losses = [detector.loss(found, detector.annotate(found), state, key) for key in (None, jax.random.key(3))]
        return losses, jax.grad(through, allow_int=True)(found)

    losses, gradient = examine(found, other)
    for path, leaf in jax.tree_util.tree_leaves_with_path(losses):
        assert jnp.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert not any(x.any() for x in jax.tree.leaves(gradient) if jnp.issubdtype(x.dtype, jnp.floating))
    for loss in losses:
        assert jax.tree.structure(loss.state) == jax.tree.structure(state)
        assert jax.tree.map(jnp.shape, loss.state) == jax.tree.map(jnp.shape, state)
