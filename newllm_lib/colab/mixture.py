"""What to train on, chosen with sliders: the mixing of `newllm data mix`."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

from newllm_lib.colab.environment import widgets_render
from newllm_lib.colab.forms import Settings, in_form_words
from newllm_lib.console import say
from newllm_lib.data import mixture
from newllm_lib.errors import NewLLMError, UsageError

FOLDER = Path("data/mix")  # where `make train-phase7-1.5b` looks too


def mix(settings: Settings) -> Mixture:
    """Show the sliders (no widgets: `.choose("demo=2,dolly=1")`); `.settings()` makes the mix."""
    chosen = Mixture(settings)
    chosen.show()
    return chosen


class Mixture:
    """Shares of sources. `weights`: name, hub id or folder -> weight; empty: what the preset reads."""

    def __init__(self, settings: Settings):
        self.chosen, self.documents = settings, settings.extra["mix_documents"]
        self.weights: dict[str, float] = {}
        self.taken: dict[str, float] | None = None  # the weights that the cells below work with
        self.window: MixtureWindow | None = None
        if settings.extra["weights"]:
            self.choose(settings.extra["weights"])

    def choose(self, weights: str) -> None:
        """Take `demo=2,dolly=1` instead.

        Raises:
            UsageError: it does not look like that.
        """
        self.weights = mixture.parse_weights(weights)

    def show(self) -> None:
        """Draw the sliders, or say how to choose without them."""
        if widgets_render():
            self.window = MixtureWindow(self)
        else:
            say(f'{self.describe()} (change it with .choose("demo=2,dolly=1"))')

    def describe(self) -> str:
        recipe = self.chosen.recipe()
        if not self.weights:
            return (
                f"No shares chosen: training reads what the settings say ({recipe.data_dir or recipe.data})"
            )
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in self.shares().items())
        return f"{shares} of {self.documents:,} documents"

    def shares(self) -> dict[str, float]:
        return {name: weight / sum(self.weights.values()) for name, weight in self.weights.items()}

    def text(self) -> str:
        """The weights as the form and `newllm data mix --weights` take them."""
        return ",".join(f"{name}={weight:g}" for name, weight in self.weights.items())

    def make(self) -> Path | None:
        """Write the mix, unless it is there already; its folder, or None where no shares were chosen.

        Raises:
            UsageError, NewLLMError: an unknown source, or one that cannot be read.
        """
        if not self.weights:
            return None
        found = mixture.read_record(FOLDER)
        if found is None or (found["weights"], found["documents"]) != (self.shares(), self.documents):
            say(f"Mixing {self.describe()}")
            mixture.mix(self.shares(), self.documents, FOLDER)
        return FOLDER

    def settings(self) -> Settings:
        """The settings with this mix as their data; as they were where no shares were chosen.

        Raises:
            UsageError, NewLLMError: as for `make`; or the settings name a folder of their own.
        """
        if self.weights and self.chosen.overrides.get("data_dir"):
            raise UsageError("The settings name data_dir, and shares are chosen: clear one of the two.")
        folder, self.taken = self.make(), dict(self.weights)
        if folder is None:
            say(self.describe())
            return self.chosen
        say(f'{folder}: {self.describe()}. In another session: weights = "{self.text()}" in the form.')
        return replace(self.chosen, overrides={**self.chosen.overrides, "data_dir": str(folder)})


class MixtureWindow:
    """The widgets: a slider for each source, a line for further ones, and a button that mixes at once."""

    def __init__(self, chosen: Mixture):
        import ipywidgets
        from IPython.display import display

        self.mixture, self.sliders = chosen, {}
        self.rows, self.state = ipywidgets.VBox(), ipywidgets.HTML()
        self.another = ipywidgets.Text(
            placeholder="folder or hub id, then Enter · フォルダーか ID", layout={"width": "60%"}
        )
        self.another.continuous_update = False  # the value arrives with Enter
        self.another.observe(lambda change: self._add(), "value")
        self.documents = ipywidgets.BoundedIntText(
            value=chosen.documents, min=20, max=10**7, description="documents", continuous_update=False
        )
        self.documents.observe(lambda change: self._changed(), "value")
        self.button = ipywidgets.Button(description="Mix · 作成", button_style="primary")
        self.button.on_click(lambda _: self._make())
        self.log = ipywidgets.Output()
        for name in dict.fromkeys([*mixture.OFFERED, *chosen.weights]):
            self._slider(name, chosen.weights.get(name, 0.0))
        self._changed()
        head = ipywidgets.HTML(
            "<b>Data recipe · データの配合</b> (all at 0: the preset's own data · 全部 0 なら既定)"
        )
        foot = ipywidgets.HBox([self.documents, self.button])
        display(ipywidgets.VBox([head, self.rows, self.another, foot, self.state, self.log]))

    def _slider(self, name: str, value: float) -> None:
        import ipywidgets

        slider = ipywidgets.FloatSlider(
            value=value,
            min=0,
            max=max(10.0, value),
            step=0.1,
            description=name,
            style={"description_width": "10em"},
            layout={"width": "60%"},
        )
        slider.observe(lambda change: self._changed(), "value")
        self.sliders[name] = slider
        self.rows.children = tuple(self.sliders.values())

    def _add(self) -> None:
        name = self.another.value.strip()
        if name:
            self.another.value = ""
            if name not in self.sliders:
                self._slider(name, 1.0)
                self._changed()

    def _changed(self) -> None:
        """The sliders are the answer, whether the button is pressed or not."""
        self.mixture.weights = {name: slider.value for name, slider in self.sliders.items() if slider.value}
        self.mixture.documents = self.documents.value
        taken = self.mixture.taken
        late = " Not used yet: run the cells below again. · 下のセルをもう一度実行すると使われます。"
        self._say(self.mixture.describe() + (late if taken not in (None, self.mixture.weights) else ""))

    def _make(self) -> None:
        self._say("Reading …")
        folder, problem = None, None
        with self.log:  # it would swallow an error, and show it as a traceback
            try:
                folder = self.mixture.make()
            except NewLLMError as error:
                problem = str(error)
            except Exception as error:  # a click has nobody else to tell
                problem = f"{type(error).__name__}: {error}"
        if problem:
            self._say(f"✗ {' '.join(in_form_words(problem).split())}")
        else:
            self._say(f"✓ {folder}: {self.mixture.describe()}" if folder else self.mixture.describe())

    def _say(self, text: str) -> None:
        self.state.value = html.escape(text)
