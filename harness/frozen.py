"""Values that cannot be changed: dictionaries that refuse it, tuples in place of lists."""

from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """A dictionary that nothing can be written to; it compares, prints and becomes JSON as one."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a record cannot be changed; make another with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def frozen(value: Any) -> Any:
    """`value` with every dictionary and list in it, at any depth, as a copy that cannot be changed."""
    if isinstance(value, dict):
        return FrozenDict((key, frozen(item)) for key, item in value.items())
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value
