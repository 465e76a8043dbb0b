"""All compile cases of the package, by module. `kernels.cpu` holds no Triton kernels."""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import triton

import kernels
from kernels.triton_jit import CompileCase


def kernel_modules() -> Iterator[ModuleType]:
    """Every module of the package that may hold kernels."""
    for found in pkgutil.walk_packages(kernels.__path__, "kernels."):
        if not found.name.startswith("kernels.cpu"):
            yield importlib.import_module(found.name)


def compile_cases() -> dict[str, CompileCase]:
    """Case by "module:name"."""
    return {
        f"{module.__name__}:{case.name}": case
        for module in kernel_modules()
        if hasattr(module, "compile_cases")
        for case in module.compile_cases()
    }


def jitted(module: ModuleType) -> dict[str, Any]:
    """What this module itself defines with `jit`, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.jit.KernelInterface) and value.fn.__module__ == module.__name__
    }


def reached(kernel: Any) -> set[Any]:
    """The functions behind a kernel: its own, and those that it calls on the device."""
    seen, left = set[Any](), [kernel.fn]
    while left:
        function = left.pop()
        seen.add(function)
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if isinstance(value, triton.runtime.jit.KernelInterface) and value.fn not in seen:
                left.append(value.fn)
    return seen
