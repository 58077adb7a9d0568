"""One dataclass is everything that can be chosen about a run.

The same `Recipe` is the YAML file, the flags of `newllm train`, the notebook's form and the record in a run's
folder. A YAML file may also hold a section `when:`, whose parts apply only under a condition (a device kind,
a model, a protocol, a recurrence, or max_samples: only a part of the data) and are resolved when the recipe
is loaded, so the record in a run is always flat:

    num_layers: 4
    when:
      cpu: {num_layers: 2}
      tiny_gpt2: {learning_rate: 0.003}
"""

from newllm_lib.recipe.aliases import GUIDES_KEYS
from newllm_lib.recipe.files import shipped_recipes
from newllm_lib.recipe.init_from import is_of_hub, start_run
from newllm_lib.recipe.loading import load_recipe, overrides
from newllm_lib.recipe.meaning import refuse_without_effect
from newllm_lib.recipe.recipe import Recipe
from newllm_lib.recipe.values import value_types

__all__ = [
    "GUIDES_KEYS",
    "Recipe",
    "is_of_hub",
    "load_recipe",
    "overrides",
    "refuse_without_effect",
    "shipped_recipes",
    "start_run",
    "value_types",
]
