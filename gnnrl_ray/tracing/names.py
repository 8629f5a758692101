"""What torch calls its operations.

One name stands for a function of torch and of ``F``, a method, an operator; or for modules.
"""

import operator

import torch
import torch.nn.functional as F
from torch import nn

# One number of one number.
UNARY = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish",
    "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "threshold",
    "sigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "rrelu", "exp",
    "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "abs", "sign", "clamp",
    "clamp_min", "clamp_max", "clip", "square", "neg", "sin", "cos", "tan", "atan", "erf",
    "floor", "ceil", "round", "trunc", "nan_to_num", "masked_fill", "logical_not",
    "zeros_like", "ones_like", "full_like", "empty_like", "isnan", "isinf", "isfinite",
    "bitwise_not", "invert", "zero", "fill", "absolute", "negative", "positive", "sgn",
    "signbit", "isposinf", "isneginf", "isreal", "fix", "frac", "exp2", "log10", "logit",
    "expit", "erfc", "erfinv", "sinc", "sinh", "cosh", "asin", "acos", "asinh", "acosh",
    "atanh", "arcsin", "arccos", "arctan", "arcsinh", "arccosh", "arctanh", "deg2rad",
    "rad2deg", "digamma", "lgamma", "i0", "entr", "ndtr", "log_ndtr", "rand_like",
    "randn_like",
)  # fmt: skip
# One number of several, at the same place.
COMBINING = (
    "add", "sub", "rsub", "maximum", "minimum", "where", "addcmul", "addcdiv", "lerp", "gt",
    "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "atan2", "hypot", "fmod",
    "remainder", "heaviside", "copysign", "copy", "logical_xor", "bitwise_and",
    "bitwise_or", "bitwise_xor", "and_", "or_", "xor", "subtract", "greater",
    "greater_equal", "less", "less_equal", "not_equal", "fmax", "fmin", "arctan2",
    "logaddexp", "xlogy", "isclose",
)  # fmt: skip
SCALING = (
    "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "pow", "float_power",
)  # fmt: skip
# What moves positions about.
MOVING = (
    "flatten", "unflatten", "reshape", "squeeze", "unsqueeze", "permute", "transpose",
    "swapaxes", "movedim", "chunk", "split", "tensor_split", "unbind", "narrow", "flip",
    "fliplr", "rot90", "roll", "index_select", "moveaxis", "swapdims", "hsplit", "vsplit",
    "dsplit", "tile", "broadcast_to", "repeat_interleave", "select", "t",
    "flipud",
)  # fmt: skip
REDUCING = (
    "mean", "sum", "amax", "amin", "prod", "logsumexp", "std", "var", "norm", "vector_norm",
    "all", "any", "nanmean", "nansum", "count_nonzero",
)  # fmt: skip
MIXING = (
    "matmul", "bmm", "mm", "einsum", "baddbmm", "addmm", "cumsum", "cumprod", "sort",
    "argsort", "topk", "argmax", "argmin", "median", "quantile", "kthvalue", "cdist",
    "gather", "scatter", "scatter_add", "normalize", "local_response_norm",
    "cosine_similarity", "scaled_dot_product_attention", "multi_head_attention_forward",
    "unfold", "fold", "cross", "tril", "triu", "dot", "outer", "kron", "bilinear", "diff",
    "take_along_dim", "var_mean", "std_mean", "group_norm", "broadcast_tensors",
    "hstack", "vstack", "dstack", "column_stack", "cummax", "cummin", "logcumsumexp",
    "nanmedian", "nanquantile", "msort",
)  # fmt: skip
# Of torch, what makes a tensor of numbers, and what calculates one; of a tensor, what
# makes one in its format.
CREATING = ("zeros", "ones", "full", "empty")
CALCULATING = ("arange", "linspace", "eye", "tensor", "as_tensor", "asarray")
CREATING_ALIKE = ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "new")


def called(*names: str, in_place: bool = False) -> set:
    """Return whatever goes by one of ``names``: functions, methods, operators."""
    found: set = set(names)
    if in_place:
        found |= {f"{name}_" for name in names}
    for module in (torch, F, operator, torch.linalg, torch.special):
        for name in (*names, *(f"{name}_" for name in names)):
            found.add(getattr(module, name, None))
    return found - {None}


def layers(*names: str) -> set:
    """Return torch's modules of these names, for as many dimensions as there are."""
    every = {
        f"{name}{dimensions}" for name in names for dimensions in ("", "1d", "2d", "3d")
    }
    return {getattr(nn, name) for name in every if hasattr(nn, name)}


# What leaves values as they are, or puts them into another format or place.
KEEPING = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
    F.feature_alpha_dropout, "torchvision.ops.stochastic_depth:stochastic_depth",
    "torchvision.ops.drop_block:drop_block2d", "torchvision.ops.drop_block:drop_block3d",
    "contiguous", "clone", "detach", "to", "cpu", "cuda", "type", "type_as", "float",
    "half", "double", "bfloat16", "bool", "byte", "char", "short", "int", "long",
    torch.clone, torch.detach,
}  # fmt: skip
