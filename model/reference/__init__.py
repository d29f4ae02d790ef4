"""The oracle: the whole forward pass in plain NumPy, slow and readable, that every kernel is held against."""

from model.reference.attention import PATHS
from model.reference.forward import Reference, State
from model.reference.weights import DequantisedWeights

__all__ = ["PATHS", "DequantisedWeights", "Reference", "State"]
