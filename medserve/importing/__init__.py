"""Models trained elsewhere become archives: read, mapped to a description, exported, compared.

Nothing of what is given is executed: no class is looked up by name outside a closed list, no
expression is evaluated, and weights are read as tensors and plain values alone.
"""
