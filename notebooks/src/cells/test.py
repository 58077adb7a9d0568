from newllm_lib.colab.results import measure

figures = measure(run)
