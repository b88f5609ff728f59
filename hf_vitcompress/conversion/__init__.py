"""Models of timm as models of transformers with the same output, and back."""
