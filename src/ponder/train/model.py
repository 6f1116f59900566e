"""Models to be trained come from where those that only answer do: see `ponder.engine.torch_load`."""

from ponder.engine.torch_load import Loaded, load

__all__ = ["Loaded", "load"]
