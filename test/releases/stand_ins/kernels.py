"""Hides the installed `kernels` package: it needs a newer huggingface_hub than old releases pin."""

raise ImportError("hidden: the installed kernels package is of another era")
