"""What a finished run shows: tables for the terminal, and ``report.html``. Reads a run folder; trains nothing."""

from apl_jax.report.page import write_report
from apl_jax.report.tables import print_average_precision, print_proposal_recall, print_table

__all__ = ["print_average_precision", "print_proposal_recall", "print_table", "write_report"]
