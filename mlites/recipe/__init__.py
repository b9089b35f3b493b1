"""What the user asks for, as one checked YAML file."""

from mlites.recipe.architecture import (
    MLP,
    Architecture,
    ConvNet,
    EfficientNet,
    Factory,
    LeNet,
    MobileNetV2,
    MobileNetV3,
    ResNet,
    Scaled,
    Separable,
)
from mlites.recipe.budget import Budget
from mlites.recipe.cluster import InCluster
from mlites.recipe.data import Data
from mlites.recipe.hardware import Hardware
from mlites.recipe.loading import load_recipe
from mlites.recipe.passes import QAT, Distill, Factorize, Pass, Prune, Quantize, Share
from mlites.recipe.recipe import Candidate, Recipe, Serving
from mlites.recipe.training import Teacher, Training, Transfer

__all__ = [
    "MLP",
    "QAT",
    "Architecture",
    "Budget",
    "Candidate",
    "ConvNet",
    "Data",
    "Distill",
    "EfficientNet",
    "Factorize",
    "Factory",
    "Hardware",
    "InCluster",
    "LeNet",
    "MobileNetV2",
    "MobileNetV3",
    "Pass",
    "Prune",
    "Quantize",
    "Recipe",
    "ResNet",
    "Scaled",
    "Separable",
    "Serving",
    "Share",
    "Teacher",
    "Training",
    "Transfer",
    "load_recipe",
]
