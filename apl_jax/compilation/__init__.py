"""The programs of a run, compiled for devices that are not here, before there are features.

:mod:`~apl_jax.compilation.shapes` finds the shapes of a run in its annotations.
:mod:`~apl_jax.compilation.programs` are its programs, lowered from shapes.
:mod:`~apl_jax.compilation.estimates` reads off a compiled program what memory, arithmetic and communication it takes.
"""
