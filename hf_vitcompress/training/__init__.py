"""Steps of an optimizer that several processes share."""
