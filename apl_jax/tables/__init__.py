"""The tables and figures of both papers, each made by one command.

A table is a list of rows, a row a configuration with some settings changed (:mod:`~apl_jax.tables.apl`,
:mod:`~apl_jax.tables.nontarget`). :mod:`~apl_jax.tables.plan` turns a table, a data set and seeds into runs,
:mod:`~apl_jax.tables.carry_out` makes them, sharing stages that they have in common, and :mod:`~apl_jax.tables.page`
reads off them what a table shows.
"""
