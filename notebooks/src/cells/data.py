from newllm_lib.colab.explain import show_data

show_data(settings);
