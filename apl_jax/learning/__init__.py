"""How a network learns: passes, terms and methods, and which detections become pseudo labels.

Importing this package registers what it holds.
"""

from apl_jax.learning import contrast, foreground, icd, mean_teacher, methods, mixup, npl, selection
from apl_jax.learning.detection import detection as detection_term
from apl_jax.learning.method import Method, MethodContext, Pass, Term, TermInputs, TermValue, register_method
from apl_jax.learning.selection import Link, register_selection

__all__ = [
    "Link",
    "Method",
    "MethodContext",
    "Pass",
    "Term",
    "TermInputs",
    "TermValue",
    "contrast",
    "detection_term",
    "foreground",
    "icd",
    "mean_teacher",
    "methods",
    "mixup",
    "npl",
    "register_method",
    "register_selection",
    "selection",
]
