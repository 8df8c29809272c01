"""Why ops/sequence.py is written as it is: every formulation that was considered, timed against the matmul rate.

    python benchmarks/sequence_primitives.py [--rounds N] [linear conv depthwise pointwise attention scan memory]

Sizes are those of ActionFormer on THUMOS14 (2 videos x 2304 steps, width 512, features of 2048). Each formulation runs
several times inside one ``lax.scan``, as training does, forward or with its backward pass. Formulations take turns with
a 2048 x 2048 matmul; medians of the rounds count. Columns: milliseconds, cores kept busy, GFLOP/s and their share of
the matmul rate where the work is matrix products, otherwise the time relative to the group's first line.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from apl_jax.ops import sequence

VIDEOS, STEPS, WIDTH, FEATURES, HEADS, WINDOW = 2, 2304, 512, 2048, 4, 19
REPEATS = 2  # runs of a formulation inside one scan
_VIDEOS_AND_STEPS = (((0, 1), (0, 1)), ((), ()))  # the axes that a kernel's gradient sums over, for dot_general
Function = Callable[..., Any]


class Variant(NamedTuple):
    """One formulation: a function, its arguments and the floating-point operations it needs (0: not counted)."""

    name: str
    function: Function
    args: tuple[jax.Array, ...]
    work: float = 0.0


def normal(*shape: int) -> jax.Array:
    """Standard normal float32 of a shape, the same at every start."""
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


def repeated(function: Function, length: int) -> Function:
    """``function`` run ``length`` times in a scan that carries its outputs, so that nothing is hoisted or left out."""

    def many(*args: jax.Array) -> Any:
        def body(carry: tuple[jax.Array, Any], _: None) -> tuple[tuple[jax.Array, Any], None]:
            count, inside = lax.optimization_barrier((carry[0], args))  # the arguments now depend on the iteration
            return (count + 1, function(*inside)), None

        first = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *args))
        return lax.scan(body, (jnp.int32(0), first), None, length=length)[0]

    return many


def forward_and_backward(
    name: str, function: Function, args: tuple[jax.Array, ...], work: float = 0.0
) -> list[Variant]:
    """``function`` alone, and with its gradients with respect to all arguments for one random cotangent."""

    def both(dy: jax.Array, *args: jax.Array) -> tuple[jax.Array, Any]:
        y, pull = jax.vjp(function, *args)
        return y, pull(dy)

    dy = normal(*jax.eval_shape(function, *args).shape)
    return [
        Variant(f"forward, {name}", function, args, work),
        Variant(f"forward + backward, {name}", both, (dy, *args), 3 * work),
    ]


def clocks() -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    return time.perf_counter(), time.process_time()


def compare(title: str, variants: list[Variant], rounds: int, in_scan: bool = True) -> None:
    """Prints one table; the matmul takes its turn in every round."""
    matmul = Variant("matmul 2048 x 2048 x 2048", jnp.matmul, (normal(2048, 2048), normal(2048, 2048)), 2 * 2048.0**3)
    rows = [matmul, *variants]
    programs = [jax.jit(repeated(v.function, REPEATS) if in_scan else v.function) for v in rows]
    repeats = REPEATS if in_scan else 1
    for program, variant in zip(programs, rows, strict=True):
        jax.block_until_ready(program(*variant.args))
    wall: list[list[float]] = [[] for _ in rows]
    busy: list[list[float]] = [[] for _ in rows]
    for _ in range(rounds):
        for i, (program, variant) in enumerate(zip(programs, rows, strict=True)):
            before = clocks()
            jax.block_until_ready(program(*variant.args))
            after = clocks()
            wall[i].append((after[0] - before[0]) / repeats)
            busy[i].append((after[1] - before[1]) / (after[0] - before[0]))
    seconds = [statistics.median(values) for values in wall]
    rate = matmul.work / seconds[0]
    print(f"\n{title}")
    for variant, spent, cores in zip(rows, seconds, busy, strict=True):
        figures = f"{1e3 * spent:9.2f} ms {statistics.median(cores):5.2f} cores"
        if variant.work:
            figures += f" {variant.work / spent / 1e9:8.1f} GFLOP/s {variant.work / spent / rate:7.1%}"
        else:
            figures += f" {spent / seconds[1]:8.2f} x"
        print(f"  {variant.name:<50}{figures}", flush=True)


def _taps(x: jax.Array, width: int) -> list[jax.Array]:
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    return [padded[:, k : k + x.shape[1]] for k in range(width)]


def columns_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """im2col: one product with the neighbours side by side."""
    return jnp.concatenate(_taps(x, len(kernel)), -1) @ kernel.reshape(-1, kernel.shape[-1])


def shifted_inputs_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product per tap with the shifted input, autodiff's gradients."""
    return sum((tap @ k for tap, k in zip(_taps(x, len(kernel)), kernel, strict=True)), jnp.float32(0))


def lax_convolution(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's own convolution, dense for ``kernel`` [K, I, O], depthwise for [K, C]."""
    depthwise = kernel.ndim == 2
    return lax.conv_general_dilated(
        x, kernel[:, None] if depthwise else kernel, (stride,), [(len(kernel) // 2,) * 2],
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[-1] if depthwise else 1,
    )  # fmt: skip


def measure_linear(rounds: int) -> None:
    """Pointwise projections of the MLP."""
    for inputs, outputs in ((WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)):
        x, dy, kernel = normal(VIDEOS, STEPS, inputs), normal(VIDEOS, STEPS, outputs), normal(inputs, outputs)
        work = 2.0 * VIDEOS * STEPS * inputs * outputs

        def kernel_gradient(function: Function, x: jax.Array, dy: jax.Array, kernel: jax.Array = kernel) -> jax.Array:
            return jax.vjp(lambda kernel: function(x, kernel), kernel)[1](dy)[0]

        compare(
            f"linear {inputs} -> {outputs}",
            [
                Variant("forward", sequence.linear, (x, kernel), work),
                Variant("dx", lambda dy, w: jnp.einsum("bto,io->bti", dy, w), (dy, kernel), work),
                Variant("dW, ours", lambda x, dy: kernel_gradient(sequence.linear, x, dy), (x, dy), work),
                Variant("dW, autodiff of x @ W", lambda x, dy: kernel_gradient(jnp.matmul, x, dy), (x, dy), work),
                Variant("dW, one dot_general", lambda x, dy: lax.dot_general(x, dy, _VIDEOS_AND_STEPS), (x, dy), work),
                Variant("dW, per video", lambda x, dy: jnp.einsum("bti,bto->bio", x, dy).sum(0), (x, dy), work),
            ],
            rounds,
        )


def measure_conv(rounds: int) -> None:
    """Kernel-3 convolutions of the embedding and the heads."""
    forms: dict[str, Function] = {
        "ours": sequence.conv1d,
        "im2col": columns_convolution,
        "shifted inputs": shifted_inputs_convolution,
        "lax.conv": lax_convolution,
    }
    for inputs in (WIDTH, FEATURES):
        x, kernel = normal(VIDEOS, STEPS, inputs), normal(3, inputs, WIDTH)
        work = 6.0 * VIDEOS * STEPS * inputs * WIDTH
        for in_scan in (True, False):
            shown = {n: f for n, f in forms.items() if not (in_scan and n == "lax.conv" and inputs > WIDTH)}  # minutes
            variants = [v for n, f in shown.items() for v in forward_and_backward(n, f, (x, kernel), work)]
            where = "in a scan" if in_scan else "called once"
            compare(f"convolution 3 x {inputs} -> {WIDTH}, {where}", variants, rounds, in_scan)


def measure_depthwise(rounds: int) -> None:
    """Depthwise convolutions before attention; called once, for in a scan the backward pass of lax.conv takes 10 s."""
    x, kernel = normal(VIDEOS, STEPS, WIDTH), normal(3, WIDTH)
    for stride in (1, 2):
        variants = []
        for name, form in (("ours", sequence.depthwise_conv1d), ("lax.conv", lax_convolution)):
            strided = lambda x, kernel, form=form, stride=stride: form(x, kernel, stride)
            variants += forward_and_backward(name, strided, (x, kernel))
        compare(f"depthwise convolution, stride {stride}, called once", variants, rounds, in_scan=False)


def measure_pointwise(rounds: int) -> None:
    """LayerNorm, GELU and max-pool."""

    def plain_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias

    def window_pool(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 1), (1, 2, 1), [(0, 0), (1, 1), (0, 0)])

    x, wide = normal(VIDEOS, STEPS, WIDTH), normal(VIDEOS, STEPS, 4 * WIDTH)
    affine = (x, normal(WIDTH), normal(WIDTH))
    ours: Function = lambda x, scale, bias: sequence.layer_norm(x, scale, bias, 1e-5)
    groups: dict[str, list[tuple[str, Function, tuple[jax.Array, ...]]]] = {
        "LayerNorm": [("ours", ours, affine), ("autodiff", plain_layer_norm, affine)],
        "GELU, width 2048": [
            ("ours", sequence.gelu, (wide,)),
            ("jax.nn.gelu, exact", lambda x: jax.nn.gelu(x, approximate=False), (wide,)),
            ("jax.nn.gelu, tanh", jax.nn.gelu, (wide,)),
        ],
        "max-pool": [("ours", sequence.max_pool1d, (x,)), ("lax.reduce_window", window_pool, (x,))],
    }
    for title, forms in groups.items():
        compare(title, [v for form in forms for v in forward_and_backward(*form)], rounds)


def measure_attention(rounds: int) -> None:
    """Local attention by size of the query block, and the two formulations without blocks."""
    args = tuple(normal(VIDEOS, STEPS, HEADS, WIDTH // HEADS) / (3 + i) for i in range(3))
    mask = jnp.arange(STEPS) < jnp.asarray([[STEPS], [2000]])
    half = WINDOW // 2

    def blocks(size: int) -> Function:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept, sequence._QUERY_BLOCK = sequence._QUERY_BLOCK, size  # read while tracing only
            try:
                return sequence.local_attention(q, k, v, mask, WINDOW)
            finally:
                sequence._QUERY_BLOCK = kept

        return attend

    def shifts(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        pad = lambda x: jnp.pad(x, ((0, 0), (half, half)) + ((0, 0),) * (x.ndim - 2))
        keys, values, seen = pad(k), pad(v), pad(mask)
        span = [slice(i, i + STEPS) for i in range(WINDOW)]
        logits = [(q * keys[:, s]).sum(-1) + jnp.where(seen[:, s], 0.0, -1e4)[..., None] for s in span]
        weights = jax.nn.softmax(jnp.stack(logits, -1), -1)
        return sum((weights[..., i, None] * values[:, s] for i, s in enumerate(span)), jnp.float32(0))

    def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        band = jnp.abs(jnp.arange(STEPS)[:, None] - jnp.arange(STEPS)) <= half
        logits = jnp.einsum("bqhe,bkhe->bhqk", q, k) + jnp.where(mask, 0.0, -1e4)[:, None, None]
        return jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(jnp.where(band, logits, -1e30), -1), v)

    forms = {f"blocks of {size}": blocks(size) for size in (32, 64, 128)} | {"19 shifts": shifts, "dense": dense}
    variants = [v for name, form in forms.items() for v in forward_and_backward(name, form, args)]
    compare(f"local attention, window {WINDOW}", variants, rounds)


def measure_scan(rounds: int) -> None:
    """Whether a step costs more inside ``lax.scan`` than called by itself."""
    forms: dict[str, Function] = {"ours": sequence.conv1d, "lax.conv": lax_convolution}
    for videos, steps, width in ((4, 160, 64), (VIDEOS, STEPS, WIDTH)):
        x, kernel, expand = normal(videos, steps, width), normal(3, width, width) / 40, normal(width, 4 * width) / 40
        for name, convolve in forms.items():
            if name == "lax.conv" and steps == STEPS:
                continue  # minutes

            def loss(weights: tuple[jax.Array, ...], x: jax.Array, convolve: Function = convolve) -> jax.Array:
                y = sequence.layer_norm(convolve(x, weights[0]), jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]), 1e-5)
                return (sequence.gelu(sequence.linear(y, weights[1])) ** 2).mean()

            def step(weights: tuple[jax.Array, ...], x: jax.Array, loss: Function = loss) -> tuple[jax.Array, ...]:
                return jax.tree.map(lambda weight, slope: weight - 0.01 * slope, weights, jax.grad(loss)(weights, x))

            scanned = jax.jit(lambda w, x, step=step: lax.scan(lambda w, _: (step(w, x), None), w, length=8)[0])
            called, weights = jax.jit(step), (kernel, expand)
            jax.block_until_ready((scanned(weights, x), called(weights, x)))
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                start = time.perf_counter()
                jax.block_until_ready(scanned(weights, x))
                middle, w = time.perf_counter(), weights
                for _ in range(8):
                    w = called(w, x)
                jax.block_until_ready(w)
                times[0].append((middle - start) / 8)
                times[1].append((time.perf_counter() - middle) / 8)
            inside, outside = (1e3 * statistics.median(t) for t in times)
            size = f"{videos} x {steps} x {width}"
            print(f"  step on {size:<16}{name:<10} scanned {inside:8.2f} ms, called {outside:8.2f} ms: "
                  f"{inside / outside:5.2f} x", flush=True)  # fmt: skip


def measure_memory(rounds: int) -> None:
    """What fresh memory costs: XLA's CPU client returns a program's buffers to the system after every call."""
    x = normal(VIDEOS, STEPS, FEATURES)
    program = jax.jit(lambda x: x + 1)
    once, faults = [], []
    for _ in range(3 * rounds):
        before, pages = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        jax.block_until_ready(program(x))
        once.append(time.perf_counter() - before)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - pages)
    print(f"  x + 1 of {x.nbytes / 1e6:.0f} MB, called: {1e3 * statistics.median(once):.2f} ms, "
          f"{statistics.median(faults):.0f} page faults", flush=True)  # fmt: skip
    compare("the same in a scan", [Variant("x + 1", lambda x: x + 1, (x,))], rounds)


GROUPS = {
    "linear": measure_linear,
    "conv": measure_conv,
    "depthwise": measure_depthwise,
    "pointwise": measure_pointwise,
    "attention": measure_attention,
    "scan": measure_scan,
    "memory": measure_memory,
}


def main() -> None:
    """Measures the groups named on the command line, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help=f"any of {', '.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    unknown = sorted(set(options.groups) - set(GROUPS))
    if unknown:
        parser.error(f"no group {unknown[0]!r}: there are {', '.join(GROUPS)}")
    for name in options.groups or GROUPS:
        GROUPS[name](options.rounds)


if __name__ == "__main__":
    main()
