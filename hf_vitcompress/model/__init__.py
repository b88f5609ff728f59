"""A model is opened, put together, restructured and made dense again."""
