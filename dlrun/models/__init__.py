"""Models: each a module that maps images (B, C, H, W) to logits (B, num_classes); `dlrun train model=...`."""
