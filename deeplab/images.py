"""The images of a store that a training of a cell uses, and those that it is evaluated on."""

from deeplab.config import RecipeConfig
from deeplab.folds import divide
from deeplab.store import Split, Store

# Left out of the code of a cell without `folds` (pipeline/settings/code.py).
DIVISIONS = {"folds": divide}


def training_images(store: Store, recipe: RecipeConfig, run: int) -> Split:
    """The training split; with `folds` without fold `run`. Raises DataError for a split or a fold without images."""
    split = store.split(recipe.train_split)
    return DIVISIONS["folds"](split, recipe.folds, run)[0] if recipe.folds else split


def evaluation_images(store: Store, recipe: RecipeConfig, run: int) -> Split:
    """The validation split; with `folds` fold `run` of the training split. Raises DataError as above."""
    split = store.split(recipe.eval_split)
    return DIVISIONS["folds"](split, recipe.folds, run)[1] if recipe.folds else split
