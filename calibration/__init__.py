"""Where measured numbers come from: GPU, storage and network of a real machine."""
