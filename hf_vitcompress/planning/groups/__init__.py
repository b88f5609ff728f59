"""What is compressed together: a layer, queries and keys, layers with features between them, heads."""
