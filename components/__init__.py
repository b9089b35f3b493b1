"""KFP components, one file per containerized step: a typed signature and a few lines that call mlites."""
