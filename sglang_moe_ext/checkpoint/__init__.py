"""A look into any local safetensors checkpoint: is its routing what it should be?

Needs numpy, and neither torch nor sglang. Start with `inspection.inspect_checkpoint` and
`comparison.compare_checkpoints`; the command line is in `command`.
"""
