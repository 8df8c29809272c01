"""The boundary-matching layer of BMN: features of every segment (duration, start) of a sequence, on a map (spec 2.2).

A cell (d, s) is sampled in N bins, from half a length before the segment to half a length behind it; a bin is the mean
of a few points, each interpolated between two steps. BMN then has a three-dimensional convolution that takes all N
bins at once, that is, one matrix for each bin. Both are linear, so that they may change places: the T steps are
projected first, once for each bin, and the projections are interpolated. Sampling first would project N D T sampled
steps instead of N T. A training step at T = 100 takes a small part of the time and of the memory
(``benchmarks/boundary_matching.py`` prints how much).

What is left is a product with a fixed matrix of D T x N T weights, of which 1.5 % are not zero. Gathering the steps of
every bin would be the fewest operations, but CPUs gather slowly, and its gradient is a sum into rows that are hit
hundreds of times each. Cells next to one another see nearly the same steps. So the map is cut in squares: a square
gathers the rows that any of its cells uses, an eighth of them all, and the rest is a small dense product. Squares go
one after the other, so that what they gather stays in a CPU's cache, at the speed of matrix products; accelerators see
a loop of some hundred products, each as wide as the batch. Squares without a segment that ends within the sequence are
not computed, neither here nor in the convolutions over the map, which go over the same cells.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from apl_jax.structs import Array

_SIDE = 8  # cells of a square; larger squares gather less and multiply more. 5 and 12 were measured, and slower
_CHUNK = 512  # cells that a convolution takes at a time
_REACH = 2  # cells from which two 3 x 3 convolutions carry something into a valid one


class Sampling(NamedTuple):
    """How the cells of D durations x T starts are sampled, and which are neighbours; hashable."""

    steps: int  # T
    durations: int  # D
    samples: int  # N bins
    points: int  # of each bin
    extension: float  # beyond both ends, in lengths
    # J: a map of starts x ends, sampled from s to s + d + 1 | S: of durations x starts, sampled from s to s + d
    layout: str


def sampling_taps(sampling: Sampling, duration: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps ``[*M, N, 2 points]`` and their weights in each bin, of cells ``duration``, ``start`` ``[*M]`` (spec 2.2).

    Steps outside of the sequence have the weight 0 and are clipped into it. Numpy, float64.
    """
    first, last = start[..., None], (start + duration + (sampling.layout == "J"))[..., None]
    length = last - first + 1
    count = sampling.samples * sampling.points
    left, right = first - sampling.extension * length, last + sampling.extension * length
    x = left + (right - left) / max(count - 1, 1) * np.arange(count)
    near = np.trunc(x)
    share = x - near
    step = np.stack([near, np.ceil(x)], -1)
    weight = np.stack([1 - share, share], -1) / sampling.points
    weight = np.where((step >= 0) & (step <= sampling.steps - 1), weight, 0.0)
    shape = (*x.shape[:-1], sampling.samples, 2 * sampling.points)
    return np.clip(step, 0, sampling.steps - 1).astype(np.int64).reshape(shape), weight.reshape(shape)


class Squares(NamedTuple):
    """The K squares of a map that hold valid cells, or cells so near that convolutions carry them into valid ones.

    Their Q = K * side^2 cells stand in a row, square after square.
    """

    duration: np.ndarray  # [Q] int; outside of [0, D) where the cell is no segment
    start: np.ndarray  # [Q] int
    edge: np.ndarray  # [Q] int: how many steps a sequence must have at least for the cell to be on its map
    row: np.ndarray  # [K, R] which of the N T projected rows (bin after bin) each square gathers
    weight: np.ndarray  # [K, side^2, R] float32
    neighbour: np.ndarray  # [Q, 9] cells around each, itself in the middle; Q where that is none that is computed
    place: np.ndarray  # [D, T] where each valid cell stands; Q where the cell is none


@functools.lru_cache(maxsize=8)
def squares_of(sampling: Sampling) -> Squares:
    """The squares of a map and their weights; numpy."""
    steps, durations, bins = sampling.steps, sampling.durations, sampling.samples
    by_end = sampling.layout == "J"
    shape = (steps if by_end else durations), steps
    grid = tuple(-(-size // _SIDE) for size in shape)
    down, across = np.indices([size * _SIDE for size in grid])  # of the whole map, rounded up to whole squares
    duration, start = (across - down, down) if by_end else (down, across)
    valid = (duration >= 0) & (duration < durations) & (duration + start < steps)
    on_map = (down < shape[0]) & (across < shape[1])
    bordered = np.pad(valid, _REACH)
    windows = np.lib.stride_tricks.sliding_window_view(bordered, (2 * _REACH + 1, 2 * _REACH + 1))
    by_square = lambda x: x.reshape(grid[0], _SIDE, grid[1], _SIDE).swapaxes(1, 2).reshape(-1, _SIDE * _SIDE)
    needed = by_square(windows.any((2, 3)) & on_map).any(-1)
    pick = lambda x: by_square(x)[needed]  # [K, side^2]

    packed = []
    for d, s, exists in zip(pick(duration), pick(start), pick(valid), strict=True):
        step, weight = sampling_taps(sampling, d, s)
        dense = np.zeros((len(d), bins * steps))
        at = np.arange(len(d))[:, None, None], step + steps * np.arange(bins)[:, None]
        np.add.at(dense, at, np.where(exists[:, None, None], weight, 0.0))
        used = np.flatnonzero(dense.any(0))
        packed.append((used, dense[:, used]))
    longest = max(len(used) for used, _ in packed)
    row = np.zeros((len(packed), longest), np.int32)
    weights = np.zeros((len(packed), _SIDE * _SIDE, longest), np.float32)
    for k, (used, dense) in enumerate(packed):
        row[k, : len(used)], weights[k, :, : len(used)] = used, dense

    count = int(needed.sum()) * _SIDE * _SIDE
    standing = np.full(on_map.shape, -1)
    flat = lambda x: pick(x).reshape(-1)
    standing[flat(down), flat(across)] = np.arange(count)
    number = np.where(on_map & (standing >= 0), standing, count)
    bordered = np.pad(number, 1, constant_values=count)
    around = [bordered[i : i + on_map.shape[0], j : j + on_map.shape[1]] for i in range(3) for j in range(3)]
    # Neighbours are neighbours both ways: what a square has beyond the map sees nothing, as nothing sees it.
    neighbour = np.where(flat(on_map)[:, None], np.stack([flat(x) for x in around], -1), count)
    place = np.full((durations, steps), count)
    place[duration[valid], start[valid]] = number[valid]
    return Squares(
        flat(duration), flat(start), 1 + flat(np.maximum(down, across)),
        row, weights, neighbour.astype(np.int32), place.astype(np.int32),
    )  # fmt: skip


def projected_samples(x: Array, kernel: Array, sampling: Sampling) -> Array:
    """The boundary-matching layer and the convolution over its bins, without bias (spec 2.1): cells ``[Q, B, O]``.

    ``x [B, T, C]``, zero at invalid steps; ``kernel [N, C, O]``. Cells that do not end within the sequence are zero.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    projected = jnp.einsum("btc,nco->ntbo", x, kernel.astype(x.dtype), preferred_element_type=wide).astype(x.dtype)
    return _interpolated(projected.reshape(-1, *projected.shape[2:]), sampling)


def map_conv(cells: Array, kernel: Array, sampling: Sampling) -> Array:
    """3 x 3 convolution over the map, zeros off it: of cells ``[B, Q, I]``, ``kernel [9, I, O]``, cells ``[B, Q, O]``.

    The kernel's rows go along the map's rows first: starts in layout J, durations in S. Valid
    cells see what they would on the whole map as long as no more than two such convolutions follow one another.
    """
    return _map_conv(cells, kernel, sampling)


def to_map(cells: Array, sampling: Sampling) -> Array:
    """Cells ``[B, Q, O]`` as a map ``[B, D, T, O]``; 0 where nothing was computed."""
    return _with_zero(cells)[:, squares_of(sampling).place]


def valid_cells(steps: int, durations: int, lengths: Array) -> Array:
    """Which cells ``[*B, D, T]`` end within their sequence, of which ``lengths [*B]`` steps are valid."""
    return jnp.arange(durations)[:, None] + jnp.arange(steps) < lengths[..., None, None]


def _with_zero(cells: Array) -> Array:
    return jnp.pad(cells, ((0, 0), (0, 1), (0, 0)))


# Both products go square by square, or a few squares at a time, in a loop: what a square gathers stays in the cache and
# nothing that is larger than the map is ever there. All at once takes CPUs four times as long.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _interpolated(rows: Array, sampling: Sampling) -> Array:
    """The cells ``[Q, B, O]`` of projected rows ``[N T, B, O]``."""
    squares, wide = squares_of(sampling), jnp.promote_types(rows.dtype, jnp.float32)

    def one(square: tuple[Array, Array]) -> Array:
        row, weight = square
        return jnp.tensordot(weight.astype(rows.dtype), rows[row], 1, preferred_element_type=wide).astype(rows.dtype)

    cells = lax.map(one, (jnp.asarray(squares.row), jnp.asarray(squares.weight)))
    return cells.reshape(-1, *rows.shape[1:])


def _interpolated_forward(rows: Array, sampling: Sampling) -> tuple[Array, None]:
    return _interpolated(rows, sampling), None


def _interpolated_backward(sampling: Sampling, saved: None, dy: Array) -> tuple[Array]:
    squares, wide = squares_of(sampling), jnp.promote_types(dy.dtype, jnp.float32)

    def add(total: Array, square: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, weight, own = square
        # In float32: XLA's CPU backend has no such product of bfloat16, and sums of many cells want the digits.
        back = jnp.tensordot(weight.astype(wide), own.astype(wide), ((0,), (0,)))
        return total.at[row].add(back), None

    by_square = dy.reshape(len(squares.row), -1, *dy.shape[1:])
    nothing = jnp.zeros((sampling.samples * sampling.steps, *dy.shape[1:]), wide)
    scanned = jnp.asarray(squares.row), jnp.asarray(squares.weight), by_square
    return (lax.scan(add, nothing, scanned)[0].astype(dy.dtype),)


_interpolated.defvjp(_interpolated_forward, _interpolated_backward)


def _chunks(sampling: Sampling) -> Array:
    """The neighbours ``[chunks, cells, 9]``; the last chunk is filled with cells that have none."""
    neighbour = squares_of(sampling).neighbour
    count = len(neighbour)
    filled = np.pad(neighbour, ((0, -count % _CHUNK), (0, 0)), constant_values=count)
    return jnp.asarray(filled.reshape(-1, _CHUNK, 9))


def _columns(bordered: Array, neighbour: Array) -> Array:
    """The nine neighbours of the cells of a chunk side by side ``[B * cells, 9 I]``."""
    return bordered[:, neighbour].reshape(-1, 9 * bordered.shape[-1])


def _convolved(cells: Array, kernel: Array, sampling: Sampling) -> Array:
    wide, bordered = jnp.promote_types(cells.dtype, jnp.float32), _with_zero(cells)
    flat = kernel.astype(cells.dtype).reshape(-1, kernel.shape[-1])

    def one(neighbour: Array) -> Array:
        y = jnp.matmul(_columns(bordered, neighbour), flat, preferred_element_type=wide)
        return y.astype(cells.dtype).reshape(len(cells), -1, flat.shape[-1])

    y = jnp.moveaxis(lax.map(one, _chunks(sampling)), 0, 1)
    return y.reshape(len(cells), -1, flat.shape[-1])[:, : cells.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _map_conv(cells: Array, kernel: Array, sampling: Sampling) -> Array:
    return _convolved(cells, kernel, sampling)


def _map_conv_forward(cells: Array, kernel: Array, sampling: Sampling) -> tuple[Array, tuple[Array, Array]]:
    return _convolved(cells, kernel, sampling), (cells, kernel)


def _map_conv_backward(sampling: Sampling, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    """Neighbours of one another are neighbours both ways: the gradient is the convolution with the kernel turned about,
    a gather, where autodiff would make a sum into rows."""
    cells, kernel = saved
    chunks, bordered, wide = _chunks(sampling), _with_zero(cells), jnp.promote_types(cells.dtype, jnp.float32)
    filled = jnp.pad(dy, ((0, 0), (0, -dy.shape[1] % _CHUNK), (0, 0)))
    by_chunk = jnp.moveaxis(filled.reshape(len(dy), len(chunks), _CHUNK, -1), 1, 0)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        neighbour, own = chunk
        columns = _columns(bordered, neighbour)
        return total + jnp.matmul(columns.T, own.reshape(len(columns), -1), preferred_element_type=wide), None

    nothing = jnp.zeros((9 * kernel.shape[1], kernel.shape[2]), wide)
    dkernel = lax.scan(add, nothing, (chunks, by_chunk))[0].reshape(kernel.shape)
    return _convolved(dy, jnp.swapaxes(kernel[::-1], 1, 2), sampling), dkernel.astype(kernel.dtype)


_map_conv.defvjp(_map_conv_forward, _map_conv_backward)
