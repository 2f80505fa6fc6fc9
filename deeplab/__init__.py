"""DeepLabv3 as a pure library: tensors, arrays and frozen settings in and out."""
