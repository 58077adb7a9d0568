from newllm_lib.colab.background import start

started = start(settings)
run = started.run
