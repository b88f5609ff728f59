"""What differs by architecture: layers, inputs, outputs, and how a model is run."""
