"""What pyproject.toml cannot say: ``configs/`` lies at the top of the repository and ships as ``apl_jax.configs``."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["apl_jax*"]), "apl_jax.configs"], package_dir={"apl_jax.configs": "configs"})
