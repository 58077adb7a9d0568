from newllm_lib.colab import drive, environment
from newllm_lib.colab.download import download

if settings.extra["save_to_drive"] and environment.on_colab():
    drive.save(run)
download(run, extra=[run.path / "samples.md", run.path / "report.json"]);
