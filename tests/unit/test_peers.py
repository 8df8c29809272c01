"""Processes that are to join one another where there is nobody to join."""

from __future__ import annotations

import pytest

from apl_jax.processes import NotJoinedError, Peers


def test_no_cluster_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    words = r"`runtime.distributed`: found no processes to join .* Try: start"
    with pytest.raises(NotJoinedError, match=words), Peers(12.0).joined():
        pytest.fail("joined")
