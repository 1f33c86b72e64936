"""FINOLA: the rollout, its analysis as waves, and the linear codes and probe it is compared with."""

from framework.nn.waves.analysis import commutator, complement_basis, pde_residual, wave_speeds

__all__ = ["commutator", "complement_basis", "pde_residual", "wave_speeds"]
