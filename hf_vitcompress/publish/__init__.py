"""The Hub: what is published, how it is sent, and what lies beside a model."""
