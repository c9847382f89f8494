"""Stand-in for SGLang's kernels where no GPU driver is: every name imports, none computes.

SGLang up to 0.5.10 imports sgl_kernel at module level and cannot be imported without it.
"""

import importlib.abc
import importlib.machinery
import sys
import types

__version__ = "0.0.0"


class Absent:
    """A kernel or constant that is not there; its attributes are not there either."""

    def __init__(self, name):
        self.__name__ = name

    def __getattr__(self, name):
        return absent(self.__name__, name)

    def __call__(self, *arguments, **options):
        raise NotImplementedError(f"{self.__name__} is a stand-in: no kernel was installed")


class AbsentModule(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        return absent(self.__name__, name)


def absent(owner, name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent(f"{owner}.{name}")


class Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets `import sgl_kernel.anything` succeed."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith(f"{__name__}."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module):
        """Nothing to execute."""


sys.meta_path.append(Submodules())
sys.modules[__name__].__class__ = AbsentModule
