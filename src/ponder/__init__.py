"""ponder: small open models that think before they answer, under a hard budget."""

__version__ = "0.1.0"
