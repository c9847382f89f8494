"""Stand-in for vllm, from which old SGLang takes kernels that its CPU paths do not call."""


def absent(name):
    def kernel(*arguments, **options):
        raise NotImplementedError(f"vllm's {name} is a stand-in: no kernel was installed")

    return kernel
