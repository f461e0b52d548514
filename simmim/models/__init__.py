"""Networks: the encoder's contract, timm's backbones behind it, decoders, and where they meet."""
