from newllm_lib.colab.report import machine

machine(settings, models=("new_llm",));
