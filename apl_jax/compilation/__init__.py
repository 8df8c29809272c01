"""The programs of a run, compiled for devices that are not here, before there are features.

:mod:`~apl_jax.compilation.shapes` finds the shapes of a run in its annotations.
:mod:`~apl_jax.compilation.programs` are its programs, lowered from shapes.
:mod:`~apl_jax.compilation.estimates` reads off a compiled program what memory, arithmetic and communication it takes.
:mod:`~apl_jax.compilation.traffic` counts the bytes that pass a chip's memory.
Nothing is imported here: the command line names these constants in its help.
"""

HOST = "host"  # the topology of this machine's own devices
TRAINING, LABELLING, EVALUATION = KINDS = ("training", "labelling", "evaluation")  # of programs
# libtpu asks the machine what it is; here it is told, and kept from logging that. It would admit one process at a time;
# here several may load it, for none uses a TPU. All this before jax is imported.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
}
