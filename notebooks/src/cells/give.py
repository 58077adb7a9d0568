from newllm_lib.colab.results import give_away

give_away(run, to="", public=False, gguf=False)
