"""What tests share: tiny models, fixtures, a small Hub, a clean interpreter."""
