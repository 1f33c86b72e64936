"""An accelerator that is not there: tensors that say `cuda:0`, count on the CPU, and keep to an accelerator's rules.

Mixing it with the CPU in one operation, drawing from the other device's generator and asking for a NumPy array are
errors, as on a GPU, and every place where the host would wait for the device is written down.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda", 0)
#: what the dispatcher sees: a CPU with an index, so that autograd needs no driver
INNER = torch.device("cpu", 1)

# operations whose result's size or value the host must know
READS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive"),
    *("bincount", "is_nonzero", "equal", "linalg_cholesky_ex", "linalg_lu_factor_ex", "_linalg_solve_ex", "histc"),
}


class Wait(NamedTuple):
    """A place where the host waits for the device."""

    operation: str
    file: str  # below the repository's root
    function: str
    line: int


class OnAccelerator(Tensor):
    """A tensor of the simulated accelerator; `held` is its value on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnAccelerator":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=INNER
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnAccelerator({self.held})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {}, None)


def is_here(value: Any) -> bool:
    return isinstance(value, torch.device) and value == INNER


def dispatch(func: Any, args: Any, kwargs: dict[str, Any], note: Callable[[str], None] | None) -> Any:
    """Runs one operation of the dispatcher under the accelerator's rules."""
    name = func._schema.name.removeprefix("aten::")
    flat = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
    away = [v for v in flat if isinstance(v, OnAccelerator)]
    near = [v for v in flat if not isinstance(v, OnAccelerator)]
    target = kwargs.get("device")
    goes = is_here(target) or (target is None and bool(away))
    if name in ("_to_copy", "copy_"):
        there = isinstance(args[0], OnAccelerator)
        moved = goes != there if name == "_to_copy" else isinstance(args[1], OnAccelerator) != there
        if moved and note and not kwargs.get("non_blocking"):
            note(name)
    elif away and any(v.dim() for v in near) and not name.startswith("index"):
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found cuda:0 and cpu")
    elif away and name.startswith("index") and not isinstance(args[0], OnAccelerator):
        raise RuntimeError(f"{func}: an index on cuda:0 into a tensor on the cpu")
    generator = kwargs.get("generator")
    if goes and generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
    if away and note:
        # a mask's size is read; an index on the host (a list, or a tensor there) is copied over first
        indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(i, Tensor)
            and (i.dtype in (torch.bool, torch.uint8) or (i.dim() and not isinstance(i, OnAccelerator)))
            for i in args[1] or ()
        )
        spread = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in READS or indexed or spread:
            note(name)

    def inside(value: Any) -> Any:
        return value.held if isinstance(value, OnAccelerator) else torch.device("cpu") if is_here(value) else value

    plain_args, plain_kwargs = tree_map(inside, args), tree_map(inside, kwargs)
    result = func(*plain_args, **plain_kwargs)
    changed = {id(v.held): v for v in away}  # what is written in place comes back as the object that went in

    def outside(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in changed:
            return changed[id(value)]
        return OnAccelerator(value) if goes else value

    return tree_map(outside, result)


class _Dispatch(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {}, self.note)


class Accelerator(TorchFunctionMode):
    """Inside, `device="cuda"` is a device.

    Attributes:
        waits: every place so far where the host waited for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self._dispatch = _Dispatch(self.note)

    def note(self, operation: str) -> None:
        """Writes down the innermost place in our own packages."""
        own = [f for f in traceback.extract_stack() if _is_own(f.filename)]
        if own:
            where = own[-1]
            file = str(Path(where.filename).relative_to(ROOT))
            self.waits.append(Wait(operation, file, where.name, where.lineno or 0))
        else:
            self.waits.append(Wait(operation, "", "", 0))

    def __enter__(self) -> "Accelerator":
        # a parameter cannot take this tensor as its data, so `module.to` makes new ones
        self._overwrote = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        # a mode's handler runs without the mode, and `backward` is handled; hand-written backward passes need it
        self._engine = torch.autograd._engine_run_backward
        torch.autograd._engine_run_backward = self._backward
        self._dispatch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._dispatch.__exit__(*failure)
        torch.autograd._engine_run_backward = self._engine
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrote)

    def _backward(self, *args: Any, **kwargs: Any) -> Any:
        super().__enter__()
        try:
            return self._engine(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], OnAccelerator):
            if name in ("numpy", "__array__"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
            if name == "tolist":
                self.note("tolist")
                return args[0].held.tolist()
            if name == "data_ptr":
                return args[0].held.data_ptr()
        if func in (torch.tensor, torch.as_tensor) and isinstance(args[0], OnAccelerator):
            kwargs = {key: value for key, value in kwargs.items() if key == "dtype"}
            return args[0].detach().to(**kwargs).clone() if func is torch.tensor else args[0].to(**kwargs)
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            self.note("tensor")  # built on the host, then copied
            kwargs.pop("device")
            made = OnAccelerator(func(*args, **{**kwargs, "requires_grad": False} if func is torch.tensor else kwargs))
            return made.requires_grad_(kwargs.get("requires_grad", False))
        if name == "cuda":
            return args[0].to(INNER)

        def renamed(value: Any) -> Any:
            return INNER if _is_cuda(value) else value

        if name in ("__get__", "__set__") or func in (torch.device, torch.Generator):
            return func(*args, **kwargs)
        args = tuple(renamed(a) for a in args)
        kwargs = {k: renamed(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)


def _is_cuda(value: Any) -> bool:
    if isinstance(value, str):
        return value == "cuda" or value.startswith("cuda:")
    return isinstance(value, torch.device) and value.type == "cuda"


def _is_own(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in (
        "framework",
        "models",
        "callbacks",
        "datamodules",
    )
