"""A loaded stack made fast on a CPU by int8 products."""

from diffusiongemma.errors import OptionError
from diffusiongemma.model.layers import Layer, Linear
from diffusiongemma.model.transformer import Transformer
from diffusiongemma.quant import fast_int8

__all__ = ["use_fast_int8"]


def use_fast_int8(model: Transformer) -> None:
    """Round attention, dense MLP, experts and the tied head to int8, in place, and compute them in int8 from now on.

    Router, norms and self-conditioning stay as they are, as in the published recipes. Weights are replaced one by one, so that
    no second copy of the model exists.

    Raises:
        OptionError: the model is not on a CPU.
    """
    if model.device.type != "cpu":
        raise OptionError(f"quantize='int8' computes on a CPU; the model is on {model.device}. Leave it out there")
    for layer in model.layers:
        assert isinstance(layer, Layer)
        for linear in (*layer.self_attn.modules(), *layer.mlp.modules()):
            if isinstance(linear, Linear):
                linear.pack("weight", fast_int8(linear.matrix("weight")))
        for name in ("gate_up_proj", "down_proj"):
            layer.experts.pack(name, fast_int8(layer.experts.matrix(name)))
    model.embed_tokens.pack("weight", fast_int8(model.embed_tokens.matrix("weight"), table=True))
    model.int8_products = True
