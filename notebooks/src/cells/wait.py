from newllm_lib.colab.background import wait

wait(run)
