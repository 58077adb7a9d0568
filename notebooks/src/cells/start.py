from newllm_lib.colab.background import train

run = train(settings)
