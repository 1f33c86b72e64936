"""State of a module that is neither a parameter nor a buffer."""

from typing import Any

from torch import Tensor, nn


class UnaveragedState(nn.Module):
    """State that goes into checkpoints and to devices, and that nothing trains, averages or broadcasts.

    Weight averaging copies and mixes parameters and buffers; best weights would no longer be those that were evaluated,
    and a class rounded on its way through an average would be another class.

    Attributes:
        unaveraged: names of the attributes, each a tensor, a stack of networks or None.
    """

    unaveraged: tuple[str, ...] = ()

    def keep_unaveraged(self, name: str, value: Tensor | nn.Module | None) -> None:
        """Sets one of them."""
        self.__dict__[name] = value  # not setattr: a module would become a submodule

    def unaveraged_state(self, prefix: str = "", keep_vars: bool = False) -> dict[str, Tensor]:
        """Their entries of the state dict."""
        state: dict[str, Tensor] = {}
        for name in self.unaveraged:
            value = self.__dict__.get(name)
            if isinstance(value, nn.Module):
                state |= value.state_dict(prefix=f"{prefix}{name}.", keep_vars=keep_vars)
            elif value is not None:
                state[f"{prefix}{name}"] = value
        return state

    def unaveraged_loaded(self) -> None:
        """Called when they have been loaded."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for name in self.unaveraged:
            value = self.__dict__.get(name)
            if isinstance(value, nn.Module):
                value._apply(fn)
            elif value is not None:
                self.__dict__[name] = fn(value)
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(self.unaveraged_state(prefix, keep_vars))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        found = False
        for name in self.unaveraged:
            start = f"{prefix}{name}"
            mine = {key: state_dict.pop(key) for key in list(state_dict) if key == start or key.startswith(f"{start}.")}
            found = found or bool(mine)
            stack = self.__dict__.get(name)
            if isinstance(stack, nn.Module) and mine:
                stack.load_state_dict({key.removeprefix(f"{start}."): value for key, value in mine.items()})
            elif start in mine:
                self.__dict__[name] = mine[start].to(self.device).clone()
        if found:
            self.unaveraged_loaded()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
