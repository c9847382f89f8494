from vllm import absent as __getattr__  # noqa: F401
