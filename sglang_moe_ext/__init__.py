"""Exact, fast and checked mixture-of-experts routing for SGLang, as a plugin.

Importing this package imports nothing heavy: SGLang loads it in every one of its
processes, also in those that never build a model.
"""

__version__ = "0.1.0"
