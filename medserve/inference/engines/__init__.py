"""Engines behind one small interface: arrays in, named arrays out.

Each engine is a module of its own that imports its library only when it is loaded, so a worker
pays for the one that it uses.
"""

from medserve.inference.engines.choice import EngineChoice, choose
from medserve.inference.engines.engine import Engine, Inputs, Outputs, load_engine

__all__ = ["Engine", "EngineChoice", "Inputs", "Outputs", "choose", "load_engine"]
