"""The inputs of the decoder of an encoder-decoder."""

from typing import Any

from torch import Tensor


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """Shift the labels one place to the right, after the token with which `generate` begins.

    Most families have a method for this. M2M100 (and so NLLB), Blenderbot and others only do it
    inside their forward pass. MBart, PLBart and FSMT put the last label first, which is the token
    with which `generate` begins only if the labels end with that.

    Args:
        model: the encoder-decoder.
        labels: [batch, time], with -100 where there is no loss.

    Returns:
        [batch, time], the decoder's input ids.
    """
    settings, config = getattr(model, "generation_config", None), model.config
    candidates = (
        getattr(settings, "decoder_start_token_id", None),
        getattr(config, "decoder_start_token_id", None),
        getattr(config, "bos_token_id", None),
    )
    start = next((i for i in candidates if i is not None), None)
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        shifted = model.prepare_decoder_input_ids_from_labels(labels)
        if start is not None:
            shifted[:, 0] = start
        return shifted
    assert start is not None  # such a base is refused
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    # After the end any token will do, because nothing that follows has a loss.
    fill = config.pad_token_id if config.pad_token_id is not None else start
    return shifted.masked_fill(shifted < 0, fill)
