"""KFP pipelines built from recipes, the local runner and the command line."""
