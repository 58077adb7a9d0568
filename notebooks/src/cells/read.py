from newllm_lib.colab.results import read

read(run)
