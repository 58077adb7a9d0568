from newllm_lib.colab.results import keep

keep(settings, run)
