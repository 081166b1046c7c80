"""Depthwise convolutions in float32 inside of a training in bf16.

oneDNN (torch 2.13) has no fast gradient of depthwise bf16 convolutions on CPUs: that of the weights
of a 5 x 5 one takes 3 to 7 times as long as in float32, where 1 x 1 convolutions, most of
such networks' arithmetic, are several times faster in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["DepthwiseInF32"]


class DepthwiseInF32(TorchFunctionMode):
    """While entered, a depthwise 2D convolution is computed in float32; its type stays its input's.

    with DepthwiseInF32():
        logits = network(image)  # under autocast; the gradient follows
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, in float32 where it is such a convolution."""
        given = dict(kwargs or {})
        if func is F.conv2d and _is_depthwise(args, given):
            return _in_f32(func, args, given)
        return func(*args, **given)


def _in_f32(func: Callable[..., Any], args: Sequence[Any], given: Mapping[str, Any]) -> Tensor:
    image: Tensor = args[0]
    rest = [each.float() if isinstance(each, Tensor) else each for each in args[1:]]
    with torch.autocast(image.device.type, enabled=False):
        answer: Tensor = func(image.float(), *rest, **given)
    return answer.to(image.dtype)


def _is_depthwise(args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    """By `conv2d(input, weight, bias, stride, padding, dilation, groups)`."""
    groups = args[6] if len(args) > 6 else given.get("groups", 1)
    return bool(groups > 1 and groups == args[0].shape[1])
