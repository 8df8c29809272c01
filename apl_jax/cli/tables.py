"""``apl-jax tables``: the tables and figures of both papers, from the runs of their rows."""

from __future__ import annotations

import argparse
from argparse import Namespace

from apl_jax.cli.configuration import declare_plugin, load_plugins
from apl_jax.cli.parser import OVERRIDE, PROGRAM, Command, Parser, UsageError, count, path, quoted, whole_number
from apl_jax.text import say

_MOST_SEEDS = 1000


def seeds(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, or first..last."""
    first, dots, last = text.partition("..")
    if dots:
        found = tuple(range(whole_number(first), whole_number(last) + 1)[:_MOST_SEEDS])
    else:
        found = tuple(map(whole_number, text.split(",")))
    if not found or min(found) < 0 or len(set(found)) < len(found):
        expected = "different whole numbers from 0 on, such as 0,1,2 or 0..4"
        raise argparse.ArgumentTypeError(f"found {quoted(text)}, expected {expected}")
    return found


def _declare(parser: Parser) -> None:
    parser.add_argument("tables", metavar="TABLE", nargs="*", help="name of a table, such as apl:2")
    parser.switch("list", "name all tables and figures, and do nothing else")
    words = "data set: the name of its configuration without a variant, or a configuration file"
    parser.flag("data", "NAME", words, default="spsw")
    parser.flag("seeds", "LIST", "seeds of network and split, such as 0,1,2 or 0..4", seeds, default=(0,), shown="0")
    parser.flag("workdir", "FOLDER", "folder of the runs and pages, made if there is none", path)
    parser.flag("jobs", "N", "runs side by side, each a process of its own", count, default=1)
    parser.switch("plan", "say what is to be run and what it costs, and run nothing")
    words = "another value for one setting in all rows, such as the folder of the data"
    parser.add_argument(f"{OVERRIDE}PATH", metavar="VALUE", help=words)
    declare_plugin(parser)


def _carry_out(arguments: Namespace) -> None:
    from apl_jax.report.tables import aligned
    from apl_jax.tables.catalogue import TABLES

    if arguments.list or not arguments.tables:
        say(aligned([["table", "rows", "title"], *([t.name, str(len(t.rows)), t.title] for t in TABLES.values())]))
        return
    if arguments.workdir is None:
        raise UsageError(f"{PROGRAM} tables: found no --workdir, expected the folder of the runs and pages")
    unknown = [name for name in arguments.tables if name not in TABLES]
    if unknown:
        raise UsageError(f"{PROGRAM} tables: no table {quoted(unknown[0])}; there are {', '.join(TABLES)}")
    load_plugins(arguments)
    _make(arguments)


def _make(arguments: Namespace) -> None:
    from apl_jax.interruption import stoppable
    from apl_jax.tables.carry_out import carry_out, measure_speed
    from apl_jax.tables.catalogue import TABLES
    from apl_jax.tables.page import write_page
    from apl_jax.tables.plan import cost_of, distinct_runs, fitted, plan_table

    workdir = arguments.workdir
    chosen = [TABLES[name] for name in dict.fromkeys(arguments.tables)]
    plans = [plan_table(table, arguments.data, arguments.seeds, arguments.overrides, workdir) for table in chosen]
    plans, facts, labelled = fitted(plans, workdir)
    runs = list(distinct_runs(plans).values())
    for plan in plans:
        for place, why in sorted(plan.left_out.items()):
            say(f"{plan.table.name}: without the row {plan.table.rows[place].name!r}. {why}")
    cost = cost_of(runs, facts, labelled)
    say(cost.words(len(runs)))
    if cost.work:
        with stoppable():
            say(measure_speed(runs[0][0].settings).words(cost, arguments.jobs))
    if arguments.plan:
        return
    with stoppable():
        carry_out(runs, workdir, arguments.jobs)
    for plan in plans:
        page = write_page(plan, workdir)
        say(f"\n{page.read_text(encoding='utf-8')}\npage      {page}, also as .csv and .html")


COMMAND = Command(
    "tables",
    "make the tables of the papers",
    "Makes tables and figures of both papers: runs every row with every seed, once where rows have stages in common, "
    "and writes a page with means, deviations and paired differences beside the paper's numbers. The same command goes "
    "on after an interruption.",
    (
        "--list",
        "apl:2 --data=spsw --seeds=0..4 --workdir=runs/tables --plan",
        "apl:2 ntc:2 --data=hapt --config.data.root=data/hapt --seeds=0,1,2 --workdir=runs/tables --jobs=2",
    ),
    _declare,
    _carry_out,
    configured=True,
)
