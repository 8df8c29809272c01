"""All tables and figures by name."""

from __future__ import annotations

from apl_jax.tables import apl, apl_supplement, nontarget
from apl_jax.tables.table import Table

TABLES: dict[str, Table] = {table.name: table for table in (*apl.TABLES, *apl_supplement.TABLES, *nontarget.TABLES)}
