from IPython.display import Markdown, display

from newllm_lib.training.report import lines, read_report

print(*lines(read_report(run)), sep="\n")
display(Markdown((run.path / "samples.md").read_text(encoding="utf-8")))
