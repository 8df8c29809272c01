"""Semi-supervised temporal action localisation by adaptive pseudo-label learning, in JAX and Flax."""

__version__ = "0.2.0"
